"""Contract `duties` of chaincode `metering`: the end of days, as calls for a utility's agent.

On the utility's own peers, where the readings are. A day is settled as soon as its last interval is
read, or once a reading would be late anyway; a settled period is billed. What was computed in
private is posted by the next call, with the part of it that is public.
"""

from typing import Any, ClassVar

from consortium.chaincode.api import Context, Contract, query

from ..billing.bill_basis import OpenBills, Statement, statement_key
from ..common import access, commitments, settings
from ..common.commitments import called
from ..common.settings import MeteringSettings
from ..settlement.days import OpenDay, OpenDays, Summary, summary_key
from .pseudonyms import together
from .readings import Store, connection_intervals


def _is_read(
    store: Store, connection_id: str, one: OpenDay, own: MeteringSettings, now: int
) -> bool:
    """Whether a connection's day can be settled now."""
    [last] = connection_intervals(
        store, connection_id, one.to - own.interval_s, one.to, own.interval_s, scan=True
    )
    if not last.missing:
        return True
    if last.missing == ("",) or now < one.to + own.late_after_s:
        return False  # without an accredited meter money never settles
    day = connection_intervals(store, connection_id, one.from_, one.to, own.interval_s, scan=True)
    return any(interval.secrets for interval in day)


class Duties(Contract):
    """What is due where the readings are."""

    name: ClassVar[str] = "duties"

    @query
    def due(self, context: Context) -> list[dict[str, Any]]:
        """Calls that settle days and make bills, for the caller's utility alone."""
        utility = context.creator.msp_id
        access.require(
            access.is_operator(context.creator, utility),
            context.creator,
            f"see what is due at {utility}",
            f"operators of {utility}",
        )
        own = settings.read(context, MeteringSettings, "metering:Configure")
        now = settings.now(context, own)
        store = Store(context, utility)
        found: list[dict[str, Any]] = []
        open_days = called(context, "energy", "agenda:Days", OpenDays, utility=utility)
        for one, homes in together(context, utility, open_days.days):
            where = {"utility": utility, "day": one.day, "run": one.run}
            summaries: list[Summary] = []
            rest: list[str] = []
            known = {
                name: commitments.opened(
                    context, utility, summary_key(one.day, one.run, name), Summary
                )
                for name in one.connections
            }
            # A home and its pseudonyms are computed together.
            waiting = [homes.get(name, name) for name in known if known[name] is None]
            for name, summary in known.items():
                home = homes.get(name, name)
                if summary is not None and home not in waiting:
                    summaries.append(summary)
                elif _is_read(store, home, one, own, now):
                    rest.append(name)
            if one.together and len(summaries) + len(rest) < len(one.connections):
                continue
            if summaries:
                found.append(
                    {
                        "chaincode": "energy",
                        "function": "settlement:Post",
                        "argument": {**where, "summaries": summaries},
                        "utility": utility,
                        "endorsing": [],
                    }
                )
            if rest:
                found.append(
                    {
                        "function": "daybook:Commit",
                        "argument": {**where, "connections": rest},
                        "utility": utility,
                    }
                )
        open_bills = called(context, "energy", "agenda:Bills", OpenBills, utility=utility)
        for bill in open_bills.bills:
            key = statement_key(bill.connection_id, bill.from_day, 1)
            statement = commitments.opened(context, utility, key, Statement)
            if statement is None:
                found.append({"function": "bill:Compute", "argument": bill, "utility": utility})
            else:
                found.append(
                    {
                        "chaincode": "energy",
                        "function": "billing:Post",
                        "argument": {"statement": statement},
                        "utility": utility,
                        "endorsing": [],
                    }
                )
        return found
