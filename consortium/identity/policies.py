"""Policies: whether the signers of something are enough.

Two kinds, as in Hyperledger Fabric. A *signature policy* is a tree of "n out of" over principals
(`AND('AuroraMSP.peer', 'BorealMSP.peer')`). An *implicit meta policy* counts how many of a
group's sub-groups satisfy their own policy of some name ("MAJORITY Endorsement").

Evaluation follows `common/cauthdsl/cauthdsl.go` to the letter, since endorsers of one kind and
validators of another have to agree: a principal takes the first unused identity that satisfies
it, an identity counts once, a failed branch gives back what it took, and "n out of" tries all of
its branches even when it has enough.
"""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError

from consortium.identity.msp import (
    MEMBER,
    PEER,
    Identity,
    IdentityError,
    MspError,
    MspManager,
    Principal,
    admits,
    parse_principal,
)
from consortium.wire import common_pb2
from consortium.wire.envelopes import brief

PRINCIPAL_LIMIT = 1024
"""Principals of one signature policy."""
RULE_LIMIT = 2 * PRINCIPAL_LIMIT
"""Rules of one signature policy, those that stand in others counted too. Each is tried with each of
a transaction's endorsers, of which there may be thousands."""
DEPTH_LIMIT = 32
"""Nested "n out of" of one signature policy."""

_ROLES = {
    "member": common_pb2.MSPRole.MEMBER,
    "admin": common_pb2.MSPRole.ADMIN,
    "client": common_pb2.MSPRole.CLIENT,
    "peer": common_pb2.MSPRole.PEER,
    "orderer": common_pb2.MSPRole.ORDERER,
}


class PolicyError(ValueError):
    """A policy that cannot be read or compiled; the message says why."""


class PolicyNotFoundError(KeyError):
    """No policy of that name in the channel's configuration."""

    def __str__(self) -> str:
        return f"the channel's configuration has no policy {self.args[0]}"


PolicyNotFound = PolicyNotFoundError


@dataclass(frozen=True, slots=True)
class SignedData:
    """A signature, what it covers, and the serialized identity that is said to have made it."""

    data: bytes
    identity: bytes
    signature: bytes


def verified_signers(manager: MspManager, signed: Iterable[SignedData]) -> list[Identity]:
    """The distinct identities whose signatures hold, in order.

    Unreadable identities and signatures that do not hold are left out; a second signature of the
    same certificate is not even checked. Whether an identity is a valid member is a principal's
    question (`common/policies/policy.go`).
    """
    found: dict[tuple[str, bytes], Identity] = {}
    for item in signed:
        try:
            identity = manager.deserialize(item.identity)
        except IdentityError:
            continue
        if identity.key not in found and identity.verify(item.signature, item.data):
            found[identity.key] = identity
    return list(found.values())


class Policy(Protocol):
    """Decides whether a set of signers is enough."""

    def satisfied_by(self, identities: Sequence[Identity]) -> bool:
        """Whether these signers, verified and distinct, satisfy it."""

    def satisfied_by_peers_of(self, msp_ids: Collection[str]) -> bool:
        """Whether one peer of each of these organizations would satisfy it, for planning."""


# ------------------------------------------------------------------ signature policies


@dataclass(frozen=True, slots=True)
class _Peer:
    """Some valid peer of an organization, whichever."""

    msp_id: str


type _Signer = Identity | _Peer

_PEER_ROLES = frozenset((MEMBER, PEER))


def _admits(principals: tuple[Principal, ...] | None, signer: _Signer) -> bool:
    if principals is None:
        return False
    if isinstance(signer, Identity):
        return admits(principals, signer)
    return all(
        principal.nominal
        or (
            principal.msp_id == signer.msp_id
            and principal.roles <= _PEER_ROLES
            and principal.test is None
        )
        for principal in principals
    )


@dataclass(frozen=True, slots=True)
class _SignedBy:
    principals: tuple[Principal, ...] | None
    """What the signer has to be; None where nobody can be it."""

    def take(self, signers: Sequence[_Signer], used: list[bool]) -> bool:
        for index, signer in enumerate(signers):
            if not used[index] and _admits(self.principals, signer):
                used[index] = True
                return True
        return False


@dataclass(frozen=True, slots=True)
class _OutOf:
    count: int
    rules: tuple[_SignedBy | _OutOf, ...]

    def take(self, signers: Sequence[_Signer], used: list[bool]) -> bool:
        satisfied = 0
        for rule in self.rules:
            attempt = used.copy()
            if rule.take(signers, attempt):
                satisfied += 1
                used[:] = attempt
        return satisfied >= self.count


def _compile(
    rule: common_pb2.SignaturePolicy,
    principals: Sequence[tuple[Principal, ...] | None],
    depth: int = 0,
) -> _SignedBy | _OutOf:
    if depth > DEPTH_LIMIT:
        raise PolicyError(f"a signature policy is nested deeper than {DEPTH_LIMIT}")
    kind = rule.WhichOneof("Type")
    if kind == "signed_by":
        if not 0 <= rule.signed_by < len(principals):
            raise PolicyError(
                f"a signature policy names principal {rule.signed_by} of {len(principals)}"
            )
        return _SignedBy(principals[rule.signed_by])
    if kind == "n_out_of":
        return _OutOf(
            rule.n_out_of.n,
            tuple(_compile(inner, principals, depth + 1) for inner in rule.n_out_of.rules),
        )
    raise PolicyError("a signature policy has an empty rule")


def _count_rules(rule: common_pb2.SignaturePolicy) -> int:
    """Rules in a rule, itself included; not all of them where there are more than RULE_LIMIT."""
    count, inner = 1, rule.n_out_of.rules
    if len(inner) > RULE_LIMIT:
        return len(inner)
    for one in inner:
        count += _count_rules(one)
        if count > RULE_LIMIT:
            break
    return count


class SignaturePolicy:
    """A compiled `SignaturePolicyEnvelope`."""

    def __init__(self, envelope: common_pb2.SignaturePolicyEnvelope) -> None:
        """Raises PolicyError."""
        if envelope.version != 0:
            raise PolicyError(f"a signature policy has version {envelope.version}; 0 is known")
        if len(envelope.identities) > PRINCIPAL_LIMIT:
            raise PolicyError(
                f"a signature policy has {len(envelope.identities)} principals; "
                f"{PRINCIPAL_LIMIT} are allowed"
            )
        principals: list[tuple[Principal, ...] | None] = []
        for principal in envelope.identities:
            try:
                principals.append(parse_principal(principal))
            except MspError:
                principals.append(None)  # Fabric compiles it, and then nobody satisfies it
        if _count_rules(envelope.rule) > RULE_LIMIT:
            raise PolicyError(
                f"a signature policy has more than {RULE_LIMIT} rules, which is the limit"
            )
        self.envelope = envelope
        self._rule = _compile(envelope.rule, principals)
        self.organizations = frozenset(
            part.msp_id for parts in principals if parts for part in parts if part.msp_id
        )
        """The organizations that its principals name."""

    @classmethod
    def from_bytes(cls, data: bytes) -> SignaturePolicy:
        """Compile a serialized `SignaturePolicyEnvelope`; raises PolicyError."""
        try:
            return cls(common_pb2.SignaturePolicyEnvelope.FromString(data))
        except DecodeError as error:
            raise PolicyError(f"a signature policy cannot be read: {error}") from None

    def satisfied_by(self, identities: Sequence[Identity]) -> bool:
        """Whether these signers, verified and distinct, satisfy it."""
        return self._rule.take(identities, [False] * len(identities))

    def satisfied_by_peers_of(self, msp_ids: Collection[str]) -> bool:
        """Whether one peer of each of these organizations would satisfy it."""
        peers = [_Peer(msp_id) for msp_id in sorted(msp_ids)]
        return self._rule.take(peers, [False] * len(peers))


class RejectPolicy:
    """What stands where a policy is missing: nobody satisfies it."""

    def satisfied_by(self, identities: Sequence[Identity]) -> bool:
        """Never."""
        return False

    def satisfied_by_peers_of(self, msp_ids: Collection[str]) -> bool:
        """Never."""
        return False


class ImplicitMetaPolicy:
    """Counts how many of the sub-policies are satisfied."""

    def __init__(
        self, rule: common_pb2.ImplicitMetaPolicy.Rule, sub_policies: Sequence[Policy]
    ) -> None:
        """Raises PolicyError for an unknown rule."""
        self._sub_policies = tuple(sub_policies)
        rules = common_pb2.ImplicitMetaPolicy
        thresholds = {
            rules.ANY: 1,
            rules.ALL: len(sub_policies),
            rules.MAJORITY: len(sub_policies) // 2 + 1,
        }
        if rule not in thresholds:
            raise PolicyError(f"an implicit meta policy has the unknown rule {rule}")
        # Of no sub-groups none is enough, whatever the rule.
        self.threshold = thresholds[rule] if sub_policies else 0

    def satisfied_by(self, identities: Sequence[Identity]) -> bool:
        """Whether these signers, verified and distinct, satisfy it."""
        remaining = self.threshold
        for policy in self._sub_policies:
            if remaining == 0:
                break
            remaining -= policy.satisfied_by(identities)
        return remaining == 0

    def satisfied_by_peers_of(self, msp_ids: Collection[str]) -> bool:
        """Whether one peer of each of these organizations would satisfy it."""
        satisfied = sum(policy.satisfied_by_peers_of(msp_ids) for policy in self._sub_policies)
        return satisfied >= self.threshold


# ------------------------------------------------------------------ building policies


def role_principal(msp_id: str, role: str) -> common_pb2.MSPPrincipal:
    """The principal `msp_id.role`; role is member, admin, client, peer or orderer."""
    if role not in _ROLES:
        raise PolicyError(f"the role {role!r} is none of {', '.join(_ROLES)}")
    return common_pb2.MSPPrincipal(
        principal_classification=common_pb2.MSPPrincipal.ROLE,
        principal=common_pb2.MSPRole(msp_identifier=msp_id, role=_ROLES[role]).SerializeToString(),
    )


def signature_policy_n_out_of(
    count: int, principals: Sequence[common_pb2.MSPPrincipal]
) -> common_pb2.SignaturePolicyEnvelope:
    """`count` of the principals have to sign, each with an identity of its own."""
    return common_pb2.SignaturePolicyEnvelope(
        rule=common_pb2.SignaturePolicy(
            n_out_of=common_pb2.SignaturePolicy.NOutOf(
                n=count,
                rules=[
                    common_pb2.SignaturePolicy(signed_by=index) for index in range(len(principals))
                ],
            )
        ),
        identities=principals,
    )


def signature_policy_any(
    principals: Sequence[common_pb2.MSPPrincipal],
) -> common_pb2.SignaturePolicyEnvelope:
    """One of the principals has to sign."""
    return signature_policy_n_out_of(1, principals)


def signature_policy_all(
    principals: Sequence[common_pb2.MSPPrincipal],
) -> common_pb2.SignaturePolicyEnvelope:
    """All of the principals have to sign."""
    return signature_policy_n_out_of(len(principals), principals)


def implicit_meta(rule: str, sub_policy: str) -> common_pb2.ImplicitMetaPolicy:
    """ANY, ALL or MAJORITY of the sub-groups' policies of that name."""
    rules = common_pb2.ImplicitMetaPolicy
    known = {"ANY": rules.ANY, "ALL": rules.ALL, "MAJORITY": rules.MAJORITY}
    if rule not in known:
        raise PolicyError(f"the rule {rule!r} is none of {', '.join(known)}")
    return rules(rule=known[rule], sub_policy=sub_policy)


_TOKEN = re.compile(
    r"\s*(?:(?P<word>[A-Za-z]+|\d+)|(?P<mark>[(),])|'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\")"
)
_PRINCIPAL = re.compile(r"([A-Za-z0-9.-]+)\.(admin|member|client|peer|orderer)")


class _PolicyParser:
    """Recursive descent over `GATE(P[, P…])`."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self.principals: list[common_pb2.MSPPrincipal] = []

    def fail(self, message: str) -> PolicyError:
        return PolicyError(
            f"the policy {brief(self._text, 500)} cannot be read at character {self._position}: "
            f"{message}"
        )

    def _next(self) -> tuple[str, str]:
        """Kind (word, mark, principal, end) and text of the next token."""
        match = _TOKEN.match(self._text, self._position)
        if match is None:
            if self._text[self._position :].strip():
                raise self.fail("unexpected character")
            return "end", ""
        self._position = match.end()
        kind = match.lastgroup or ""
        return ("principal" if kind in ("single", "double") else kind), match[kind]

    def _expect(self, mark: str) -> None:
        if self._next() != ("mark", mark):
            raise self.fail(f"{mark!r} expected")

    def policy(self) -> common_pb2.SignaturePolicy:
        rule = self._rule(0)
        if self._next()[0] != "end":
            raise self.fail("nothing more expected")
        if rule.WhichOneof("Type") != "n_out_of":
            raise self.fail("write a single principal as OR('Org.role')")
        return rule

    def _rule(self, depth: int) -> common_pb2.SignaturePolicy:
        if depth > DEPTH_LIMIT:
            raise self.fail(f"nested deeper than {DEPTH_LIMIT}")
        kind, text = self._next()
        if kind == "principal":
            return self._signed_by(text)
        gate = text.lower()
        if kind != "word" or gate not in ("and", "or", "outof"):
            raise self.fail(f"AND, OR, OutOf or a quoted principal expected, not {brief(text)}")
        self._expect("(")
        count = 1
        if gate == "outof":
            kind, number = self._next()
            if not number.isdecimal() or len(number) > 9:
                raise self.fail("OutOf starts with a number")
            count = int(number)
            self._expect(",")
        rules = [self._rule(depth + 1)]
        while True:
            token = self._next()
            if token == ("mark", ")"):
                break
            if token != ("mark", ","):
                raise self.fail("',' or ')' expected")
            rules.append(self._rule(depth + 1))
        if gate == "and":
            count = len(rules)
        if count > len(rules) + 1:  # n + 1 is how Fabric writes "never"
            raise self.fail(f"{count} out of {len(rules)} can never be satisfied")
        return common_pb2.SignaturePolicy(
            n_out_of=common_pb2.SignaturePolicy.NOutOf(n=count, rules=rules)
        )

    def _signed_by(self, text: str) -> common_pb2.SignaturePolicy:
        match = _PRINCIPAL.fullmatch(text)
        if match is None:
            raise self.fail(f"{brief(text)} is not 'Organization.role' with a known role")
        if len(self.principals) >= PRINCIPAL_LIMIT:
            raise self.fail(f"more than {PRINCIPAL_LIMIT} principals")
        self.principals.append(role_principal(match[1], match[2]))
        return common_pb2.SignaturePolicy(signed_by=len(self.principals) - 1)


def parse_policy(text: str) -> common_pb2.SignaturePolicyEnvelope:
    """Read Fabric's policy language: AND, OR and OutOf over quoted `'Organization.role'`.

    `OutOf(2, 'AuroraMSP.peer', 'BorealMSP.peer', 'CieloMSP.peer')`. Raises PolicyError.
    """
    parser = _PolicyParser(text)
    rule = parser.policy()
    return common_pb2.SignaturePolicyEnvelope(rule=rule, identities=parser.principals)
