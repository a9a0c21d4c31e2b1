"""Who a caller is: a home on its connection, or an operator or supplier of a utility."""

from consortium.chaincode.api import Creator, Forbidden

ROLE = "gridledger.role"
CONNECTION = "gridledger.connection"
PARTICIPANT = "gridledger.participant"
RESIDENT = "gridledger.resident"
"""Who of those who have lived at a connection."""


def is_admin(creator: Creator) -> bool:
    """Whether the certificate is an administrator's of any member."""
    return creator.role == "admin"


def is_operator(creator: Creator, utility: str) -> bool:
    """Whether the caller operates this utility."""
    return creator.msp_id == utility and (
        is_admin(creator) or creator.attributes.get(ROLE) == "operator"
    )


def is_supplier(creator: Creator, utility: str) -> bool:
    """Whether the caller trades for this utility; its operators may as well."""
    return is_operator(creator, utility) or (
        creator.msp_id == utility and creator.attributes.get(ROLE) == "supplier"
    )


def is_home(creator: Creator, utility: str, connection_id: str) -> bool:
    """Whether the caller is the home at this connection of this utility."""
    return creator.msp_id == utility and creator.attributes.get(CONNECTION) == connection_id


def participant(creator: Creator) -> str | None:
    """The trader, aggregator or other company that a certificate was made for."""
    return creator.attributes.get(PARTICIPANT)


def described(creator: Creator) -> str:
    """The caller in an error message."""
    connection = creator.attributes.get(CONNECTION)
    role = creator.attributes.get(ROLE) or creator.role or "member"
    place = f", connection {connection}" if connection else ""
    return f"{creator.common_name or 'the caller'} ({role} of {creator.msp_id}{place})"


def require(allowed: bool, creator: Creator, act: str, who: str) -> None:
    """Raise Forbidden unless allowed: '<caller> may not <act>; <who> may'."""
    if not allowed:
        raise Forbidden(f"{described(creator)} may not {act}; {who} may")


def require_operator(creator: Creator, utility: str, act: str) -> None:
    """Raise Forbidden unless the caller operates this utility."""
    require(is_operator(creator, utility), creator, act, f"operators of {utility}")


def require_supplier(creator: Creator, supplier: str, act: str) -> None:
    """Raise Forbidden unless the caller trades for this utility or operates it."""
    require(is_supplier(creator, supplier), creator, act, f"suppliers and operators of {supplier}")


def require_member(creator: Creator, act: str) -> None:
    """Raise Forbidden unless the caller operates a utility, whichever."""
    require(is_operator(creator, creator.msp_id), creator, act, "operators of any utility")
