"""Who may call a peer's listener for nodes: the consortium's peers and orderers, nobody else.

One root certifies a utility's nodes and its homes, so that TLS alone would let both in. The role
that the utility gave a certificate (its organizational unit) tells them apart.
"""

from cryptography import x509

from consortium.identity.msp import IdentityError
from consortium.ledger.channel_config import ChannelConfig

from .channel import ChannelPeer

NODE_ROLES = frozenset({"peer", "orderer"})
MAX_KNOWN = 256


class NodesOnly:
    """Admits TLS certificates of peers and orderers of the channels' organizations.

    TLS has checked the chain and the dates; here it is the issuer's being a member, revocation,
    and the role.
    """

    def __init__(self, channels: dict[str, ChannelPeer]) -> None:
        self._channels = channels
        self._configs: tuple[ChannelConfig, ...] = ()
        self._known: dict[bytes, str] = {}

    def __call__(self, certificate_pem: bytes) -> None:
        """Raises IdentityError for a certificate that is no node's."""
        configs = tuple(channel.ledger.config for channel in self._channels.values())
        if configs != self._configs or len(self._known) >= MAX_KNOWN:
            self._configs = configs
            self._known.clear()
        if certificate_pem not in self._known:
            self._known[certificate_pem] = self._problem(certificate_pem)
        if problem := self._known[certificate_pem]:
            raise IdentityError(problem)

    def _problem(self, certificate_pem: bytes) -> str:
        try:
            certificate = x509.load_pem_x509_certificate(certificate_pem)
        except ValueError:
            return "this listener wants the TLS certificate of a node of the consortium"
        problem = "no member of the consortium issued this certificate"
        for config in self._configs:
            for msp in config.msps.msps.values():
                try:
                    identity = msp.identity_of(certificate)
                    msp.validate(identity)
                except IdentityError as error:
                    problem = str(error)
                    continue
                if identity.role in NODE_ROLES:
                    return ""
                return (
                    f"this listener is for the consortium's peers and orderers; {msp.id} certified "
                    f"{identity.common_name} as {identity.role or 'nothing'}. Clients connect to "
                    "the gateway's address."
                )
        return f"this listener is for the consortium's peers and orderers: {problem}"
