// Runs one scenario with @hyperledger/fabric-gateway against a GridLedger gateway.
//
// Input: one JSON object on standard input. Output: one JSON object on standard output.
// The library is used as its documentation says; nothing here knows that the network is ours.

import { createPrivateKey } from 'node:crypto';
import { readFileSync } from 'node:fs';
import * as grpc from '@grpc/grpc-js';
import { connect, signers, hash } from '@hyperledger/fabric-gateway';

const options = JSON.parse(readFileSync(0, 'utf8'));
const client = new grpc.Client(
    options.address,
    grpc.credentials.createSsl(readFileSync(options.tlsRoots)),
);
const gateway = connect({
    client,
    identity: { mspId: options.mspId, credentials: readFileSync(options.certificate) },
    signer: signers.newPrivateKeySigner(createPrivateKey(readFileSync(options.key))),
    hash: hash.sha256,
    evaluateOptions: () => ({ deadline: Date.now() + 20000 }),
    endorseOptions: () => ({ deadline: Date.now() + 20000 }),
    submitOptions: () => ({ deadline: Date.now() + 20000 }),
    commitStatusOptions: () => ({ deadline: Date.now() + 30000 }),
});
const text = (bytes) => Buffer.from(bytes).toString('utf8');
const failure = (error) => ({
    name: error.name,
    code: error.code,
    message: error.message,
    transactionId: error.transactionId,
    details: error.details,
    cause: error.cause?.message,
});

try {
    const network = gateway.getNetwork(options.channel);
    const answers = [];
    const streams = new Map();
    for (const step of options.steps) {
        const contract = network.getContract(step.chaincode ?? 'energy');
        const args = (step.args ?? []).map((value) =>
            typeof value === 'string' ? value : JSON.stringify(value),
        );
        try {
            switch (step.do) {
                case 'submit':
                    answers.push(text(await contract.submitTransaction(step.function, ...args)));
                    break;
                case 'evaluate':
                    answers.push(text(await contract.evaluateTransaction(step.function, ...args)));
                    break;
                case 'submitAsync': {
                    const commit = await contract.submitAsync(step.function, { arguments: args });
                    const status = await commit.getStatus();
                    answers.push({
                        result: text(commit.getResult()),
                        transactionId: commit.getTransactionId(),
                        code: status.code,
                        successful: status.successful,
                        blockNumber: status.blockNumber.toString(),
                    });
                    break;
                }
                case 'transient':
                    answers.push(
                        text(
                            await contract.submit(step.function, {
                                arguments: args,
                                transientData: step.transient,
                                endorsingOrganizations: step.organizations,
                            }),
                        ),
                    );
                    break;
                case 'listen':
                    streams.set(
                        step.name,
                        await network.getChaincodeEvents(step.chaincode ?? 'energy', {
                            startBlock: step.startBlock === undefined
                                ? undefined
                                : BigInt(step.startBlock),
                        }),
                    );
                    answers.push(null);
                    break;
                case 'next': {
                    const events = streams.get(step.name);
                    const { value } = await events[Symbol.asyncIterator]().next();
                    answers.push({
                        eventName: value.eventName,
                        payload: text(value.payload),
                        transactionId: value.transactionId,
                        chaincodeName: value.chaincodeName,
                        blockNumber: value.blockNumber.toString(),
                    });
                    break;
                }
                default:
                    throw new Error(`unknown step ${step.do}`);
            }
        } catch (error) {
            answers.push({ error: failure(error) });
        }
    }
    for (const events of streams.values()) {
        events.close();
    }
    process.stdout.write(JSON.stringify(answers));
} finally {
    gateway.close();
    client.close();
}
