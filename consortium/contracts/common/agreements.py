"""Terms that several utilities approve before they hold: products, zones, tariffs, calendars.

A version of some terms is proposed by one utility, approved by others, and in force from an
instant on that lies in the future when the last approval comes. Versions are never edited. What
was in force at an instant therefore never changes afterwards, whoever asks and whenever.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated

from consortium.chaincode.api import (
    AtMost,
    Conflict,
    Context,
    Instant,
    Integer,
    MspId,
    NotFound,
    canonical_json,
    stored_record,
)

from ..market import gates
from ..registry.registry import energy_settings
from . import access, settings
from .clock import utc_text

MAX_VERSIONS = 1000
Version = Annotated[int, Integer(1, MAX_VERSIONS)]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far a version of some terms has come."""

    version: Version
    effective_from: Instant
    proposed_by: MspId
    approved_by: Annotated[tuple[MspId, ...], AtMost(64)]
    in_force: bool
    """Whether enough have approved: from `effective_from` on it holds."""


@dataclass(frozen=True, slots=True)
class _InForce:
    version: Version
    effective_from: Instant


@dataclass(frozen=True, slots=True)
class _Versions:
    """All versions that were approved, by the instant from which they hold."""

    last: Annotated[int, Integer(0, MAX_VERSIONS)]
    approved: Annotated[tuple[_InForce, ...], AtMost(MAX_VERSIONS)]


@dataclass(frozen=True, slots=True)
class _Proposed:
    last: Version


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiou" else "a"


def _place(kind: str, name: str) -> str:
    return f"terms/{kind}/{name}"


def _versions(context: Context, kind: str, name: str) -> _Versions:
    stored = context.get_state(f"{_place(kind, name)}/versions")
    return _Versions(0, ()) if stored is None else stored_record(_Versions, stored)


def propose(
    context: Context, kind: str, name: str, effective_from: int, terms: object
) -> Agreement:
    """Enter a new version of some terms, approved by its proposer.

    Raises:
        Forbidden: the caller operates no utility.
        Conflict: it would hold from the past on, or from before an approved version.
    """
    utility = context.creator.msp_id
    access.require(
        access.is_operator(context.creator, utility),
        context.creator,
        f"propose {_article(kind)} {kind}",
        "operators of a utility",
    )
    versions = _versions(context, kind, name)
    _check_effective(context, kind, name, effective_from, versions)
    place = _place(kind, name)
    stored = context.get_state(f"{place}/proposed")
    proposed = 0 if stored is None else stored_record(_Proposed, stored).last
    version = max(versions.last, proposed) + 1
    if version > MAX_VERSIONS:
        raise Conflict(f"{kind} {name} has {MAX_VERSIONS} versions, the limit; give it a new name")
    context.put_state(f"{place}/proposed", canonical_json(_Proposed(version)))
    context.put_state(f"{place}/{version:06d}", canonical_json(terms))
    agreement = Agreement(version, effective_from, utility, (utility,), False)
    return _conclude(context, kind, name, versions, agreement)


def approve(context: Context, kind: str, name: str, version: int) -> Agreement:
    """Approve a version for the caller's utility; the same again changes nothing.

    Raises:
        Forbidden: the caller operates no utility.
        NotFound: there is no such version.
        Conflict: its time has come before it was approved.
    """
    utility = context.creator.msp_id
    access.require(
        access.is_operator(context.creator, utility),
        context.creator,
        f"approve {_article(kind)} {kind}",
        "operators of a utility",
    )
    stored = context.get_state(f"{_place(kind, name)}/{version:06d}/agreement")
    if stored is None:
        raise NotFound(f"{kind} {name} has no version {version}")
    agreement = stored_record(Agreement, stored)
    if utility in agreement.approved_by:
        return agreement
    versions = _versions(context, kind, name)
    if not agreement.in_force:
        _check_effective(context, kind, name, agreement.effective_from, versions)
    agreement = replace(agreement, approved_by=tuple(sorted((*agreement.approved_by, utility))))
    return _conclude(context, kind, name, versions, agreement)


def _check_effective(
    context: Context, kind: str, name: str, effective_from: int, versions: _Versions
) -> None:
    now = settings.now(context, energy_settings(context))
    if effective_from <= now:
        raise Conflict(
            f"effective_from is {utc_text(effective_from)}, but the channel's time is "
            f"{utc_text(now)}: terms hold from a later instant on, never back in time"
        )
    gates.before(context, effective_from)
    if versions.approved and effective_from <= versions.approved[-1].effective_from:
        raise Conflict(
            f"effective_from is {utc_text(effective_from)}, but version "
            f"{versions.approved[-1].version} of {kind} {name} holds from "
            f"{utc_text(versions.approved[-1].effective_from)} on; a later one begins after it"
        )


def _conclude(
    context: Context, kind: str, name: str, versions: _Versions, agreement: Agreement
) -> Agreement:
    needed = energy_settings(context).approvals
    place = _place(kind, name)
    now_in_force = agreement.in_force or len(agreement.approved_by) >= needed
    approved = versions.approved
    if now_in_force and not agreement.in_force:
        approved = (*approved, _InForce(agreement.version, agreement.effective_from))
    agreement = replace(agreement, in_force=now_in_force)
    context.put_state(f"{place}/{agreement.version:06d}/agreement", canonical_json(agreement))
    if approved != versions.approved:
        # Whatever goes by these terms reads this: what is merely proposed doesn't touch it.
        changed = _Versions(max(versions.last, agreement.version), approved)
        context.put_state(f"{place}/versions", canonical_json(changed))
    return agreement


def names(context: Context, kind: str) -> list[str]:
    """All terms of a kind of which a version was approved, in order; one key is read for each."""
    found: list[str] = []
    start, end = f"terms/{kind}/", f"terms/{kind}0"
    while True:
        key = next((key for key, _ in context.range(start, end)), None)
        if key is None:
            return found
        name = key.split("/")[2]
        if exists(context, kind, name):
            found.append(name)
        start = f"terms/{kind}/{name}0"


def latest[T](context: Context, kind: str, name: str, record: type[T]) -> T:
    """The newest approved version of some terms, in force or to come; raises NotFound."""
    approved = _versions(context, kind, name).approved
    if not approved:
        raise NotFound(f"no version of {kind} {name} is approved")
    return terms_of(context, kind, name, approved[-1].version, record)


def exists(context: Context, kind: str, name: str) -> bool:
    """Whether any version of some terms was ever approved."""
    return bool(_versions(context, kind, name).approved)


def version_at(context: Context, kind: str, name: str, at: int) -> int:
    """Return the version of some terms that holds at an instant.

    Raises:
        NotFound: none does.
    """
    found = None
    for approved in _versions(context, kind, name).approved:
        if approved.effective_from <= at:
            found = approved.version
    if found is None:
        raise NotFound(f"no {kind} {name} is in force at {utc_text(at)}")
    return found


def terms_of[T](context: Context, kind: str, name: str, version: int, record: type[T]) -> T:
    """A version of some terms; raises NotFound."""
    stored = context.get_state(f"{_place(kind, name)}/{version:06d}")
    if stored is None:
        raise NotFound(f"{kind} {name} has no version {version}")
    return stored_record(record, stored)


def in_force[T](context: Context, kind: str, name: str, at: int, record: type[T]) -> T:
    """The terms that hold at an instant; raises NotFound."""
    return terms_of(context, kind, name, version_at(context, kind, name, at), record)


def from_then_on[T](
    context: Context, kind: str, name: str, at: int, record: type[T]
) -> Iterator[T]:
    """The terms that hold at an instant, then those that follow them; raises NotFound."""
    first = version_at(context, kind, name, at)
    versions = [approved.version for approved in _versions(context, kind, name).approved]
    for version in versions[versions.index(first) :]:
        yield terms_of(context, kind, name, version, record)
