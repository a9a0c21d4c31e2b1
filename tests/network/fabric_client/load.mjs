// Load through @hyperledger/fabric-gateway: many transactions in flight, each waited for.
// Orders come as one JSON object on standard input; latencies go to standard output.

import { createPrivateKey } from 'node:crypto';
import { readFileSync } from 'node:fs';
import * as grpc from '@grpc/grpc-js';
import { connect, hash, signers } from '@hyperledger/fabric-gateway';

const orders = JSON.parse(readFileSync(0, 'utf8'));
const client = new grpc.Client(
    orders.address,
    grpc.credentials.createSsl(readFileSync(orders.tlsRoots)),
);
const gateway = connect({
    client,
    identity: { mspId: orders.mspId, credentials: readFileSync(orders.certificate) },
    // The library's own signer, in JavaScript, as its documentation uses it.
    signer: signers.newPrivateKeySigner(createPrivateKey(readFileSync(orders.key))),
    hash: hash.sha256,
});
const contract = gateway.getNetwork(orders.channel).getContract('energy');
const latencies = [];
let next = 0;
const worker = async () => {
    while (next < orders.count) {
        const number = next++;
        const started = performance.now();
        await contract.submitTransaction(
            'wallet:Deposit',
            JSON.stringify({
                account: 'SUPPLIER-AURORA',
                amount_micro: '1000000',
                bank_reference: `${orders.run}-${number}`,
            }),
        );
        latencies.push((performance.now() - started) / 1000);
    }
};
const started = performance.now();
await Promise.all(Array.from({ length: orders.in_flight }, worker));
process.stdout.write(
    JSON.stringify({ seconds: (performance.now() - started) / 1000, latencies }),
);
gateway.close();
client.close();
