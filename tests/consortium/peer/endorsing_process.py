"""A peer in a process of its own, which endorses and commits what it reads on standard input.

One JSON object a line, answered by one; bytes travel in base64.
"""

import asyncio
import base64
import json
import sys
from pathlib import Path

from consortium.chaincode.packages import PackageStore
from consortium.chaincode.routing import PackageExecutor
from consortium.contracts import chaincodes
from consortium.contracts.package import package
from consortium.identity.signing import Signer
from consortium.ledger.ledger import Ledger
from consortium.node.executors import SETTINGS_FILE, SourceExecutors
from consortium.peer.channel import ChannelPeer
from consortium.peer.contracts import Contracts
from consortium.peer.endorser import Endorser, ProposalRefused
from consortium.wire import common_pb2, peer_pb2


async def main(folder: Path, msp_id: str) -> None:
    signer = Signer.load(msp_id, folder / "sign.cert.pem", folder / "sign.key.pem")
    genesis = common_pb2.Block.FromString((folder / "genesis.block").read_bytes())
    ledger = Ledger.open(folder / "ledger", msp_id=msp_id, genesis=genesis, durable=False)
    channel = ChannelPeer(ledger, signer)
    packages = PackageStore(folder / "packages")
    for name in chaincodes():
        packages.save(package(name))
    contracts = Contracts(msp_id, packages)
    sources = SourceExecutors(packages, folder / SETTINGS_FILE)
    executor = PackageExecutor(packages, sources, contracts.package_of)
    endorser = Endorser({ledger.channel_id: channel}, signer, executor, contracts)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        if "proposal" in asked:
            signed = peer_pb2.SignedProposal.FromString(base64.b64decode(asked["proposal"]))
            try:
                response = (await endorser.process(signed)).SerializeToString()
                answer = {"response": base64.b64encode(response).decode()}
            except ProposalRefused as error:
                answer = {"refused": str(error)}
        else:
            block = common_pb2.Block.FromString(base64.b64decode(asked["block"]))
            committed = await channel.commit(block)
            answer = {"codes": committed.codes.hex(), "hash": committed.commit_hash.hex()}
        print(json.dumps(answer), flush=True)
    await endorser.close()
    await executor.close()
    await sources.close()
    await channel.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
