"""Consenters added to, removed from and changed in a channel's configuration, in place."""

from collections.abc import Callable, Sequence

from consortium.ledger.channel_config import Consenter, OrganizationSpec, orderer_organization_group
from consortium.ledger.config_update import ORDERER, ConfigError
from consortium.wire import common_pb2, etcdraft_pb2, orderer_pb2

type Consenters = Sequence[etcdraft_pb2.Consenter]


def add_consenter(
    config: common_pb2.Config, consenter: Consenter, organization: OrganizationSpec | None = None
) -> None:
    """Add a consenter, and its organization to those that order where it is not among them.

    Raises ConfigError if there is one at that address, or with that certificate.
    """

    def change(consenters: Consenters) -> Consenters:
        for one in consenters:
            if one.client_tls_cert == consenter.client_tls_certificate_pem or (
                (one.host, one.port) == (consenter.host, consenter.port)
            ):
                raise ConfigError(
                    f"{one.host}:{one.port} is a consenter of the channel already; to give it"
                    " another certificate, rotate it"
                )
        return [*consenters, _message(consenter)]

    _change(config, change)
    orderers = config.channel_group.groups[ORDERER].groups
    if organization is not None and organization.msp_id not in orderers:
        orderers[organization.msp_id].CopyFrom(orderer_organization_group(organization))


def remove_consenter(config: common_pb2.Config, host: str, port: int) -> None:
    """Take the consenter at an address out; raises ConfigError if there is none, or no other."""

    def change(consenters: Consenters) -> Consenters:
        rest = [one for one in consenters if (one.host, one.port) != (host, port)]
        if len(rest) == len(consenters):
            raise ConfigError(_unknown(consenters, host, port))
        if not rest:
            raise ConfigError(
                f"{host}:{port} is the channel's only consenter; add another one before it goes"
            )
        return rest

    _change(config, change)


def replace_consenter(config: common_pb2.Config, consenter: Consenter) -> None:
    """Give the consenter at an address other certificates; raises ConfigError if there is none."""

    def change(consenters: Consenters) -> Consenters:
        if all((one.host, one.port) != (consenter.host, consenter.port) for one in consenters):
            raise ConfigError(_unknown(consenters, consenter.host, consenter.port))
        return [
            _message(consenter) if (one.host, one.port) == (consenter.host, consenter.port) else one
            for one in consenters
        ]

    _change(config, change)


def _unknown(consenters: Consenters, host: str, port: int) -> str:
    known = ", ".join(f"{one.host}:{one.port}" for one in consenters)
    return f"{host}:{port} is no consenter of the channel; there are {known}"


def _message(consenter: Consenter) -> etcdraft_pb2.Consenter:
    return etcdraft_pb2.Consenter(
        host=consenter.host,
        port=consenter.port,
        client_tls_cert=consenter.client_tls_certificate_pem,
        server_tls_cert=consenter.server_tls_certificate_pem,
    )


def _change(config: common_pb2.Config, change: Callable[[Consenters], Consenters]) -> None:
    value = config.channel_group.groups[ORDERER].values["ConsensusType"]
    consensus = orderer_pb2.ConsensusType.FromString(value.value)
    if consensus.type != "etcdraft":
        raise ConfigError(f"the channel is ordered by {consensus.type}, which has no consenters")
    metadata = etcdraft_pb2.ConfigMetadata.FromString(consensus.metadata)
    after = list(change(list(metadata.consenters)))
    del metadata.consenters[:]
    metadata.consenters.extend(after)
    consensus.metadata = metadata.SerializeToString(deterministic=True)
    value.value = consensus.SerializeToString(deterministic=True)
