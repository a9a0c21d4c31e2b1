// Runs one scenario with @hyperledger/fabric-gateway against a GridLedger gateway.
//
// Input: one JSON object on standard input. Output: one JSON array on standard output, with an
// answer for each step. The library is used as its documentation says; nothing here knows that
// the network is ours.

import { createHash, createPrivateKey } from 'node:crypto';
import { readFileSync } from 'node:fs';
import * as grpc from '@grpc/grpc-js';
import { checkpointers, connect, hash, signers } from '@hyperledger/fabric-gateway';
import protos from '@hyperledger/fabric-protos';

const options = JSON.parse(readFileSync(0, 'utf8'));
const client = new grpc.Client(
    options.address,
    grpc.credentials.createSsl(readFileSync(options.tlsRoots)),
);
const identity = { mspId: options.mspId, credentials: readFileSync(options.certificate) };
const sign = signers.newPrivateKeySigner(createPrivateKey(readFileSync(options.key)));
const within = (milliseconds) => () => ({ deadline: Date.now() + milliseconds });
const deadlines = {
    evaluateOptions: within(20000),
    endorseOptions: within(20000),
    submitOptions: within(20000),
    commitStatusOptions: within(30000),
    ...Object.fromEntries(
        Object.entries(options.deadlines ?? {}).map(([name, ms]) => [name, within(ms)]),
    ),
};
const gateway = connect({ client, identity, signer: sign, hash: hash.sha256, ...deadlines });
// Has no key: whatever it sends was signed elsewhere.
const keyless = connect({ client, identity, hash: hash.sha256, ...deadlines });

const text = (bytes) => Buffer.from(bytes).toString('utf8');
const failure = (error) => ({
    name: error.name,
    code: error.code,
    message: error.message,
    transactionId: error.transactionId,
    details: error.details,
    cause: error.cause?.message,
});
const outcome = (status) => ({
    transactionId: status.transactionId,
    code: status.code,
    successful: status.successful,
    blockNumber: status.blockNumber.toString(),
});
const argumentsOf = (step) =>
    (step.args ?? []).map((value) => (typeof value === 'string' ? value : JSON.stringify(value)));
const proposalOf = (step) => ({
    arguments: argumentsOf(step),
    transientData: step.transient,
    endorsingOrganizations: step.organizations,
});
const contractOf = (step, through = gateway) =>
    through.getNetwork(options.channel).getContract(step.chaincode ?? 'energy');
// Someone else's signature where a step wants one that does not hold.
const signatureOf = async (signable, step) =>
    step.forged === true
        ? await sign(createHash('sha256').update('something else').digest())
        : await sign(signable.getDigest());

// Each kind of events: how the library opens it, and what is shown of one event.
const KINDS = {
    chaincode: {
        open: (network, step, from) =>
            network.newChaincodeEventsRequest(step.chaincode ?? 'energy', from),
        signed: (bytes, signature) => keyless.newSignedChaincodeEventsRequest(bytes, signature),
        checkpoint: (checkpointer, event) => checkpointer.checkpointChaincodeEvent(event),
        show: (event) => ({
            eventName: event.eventName,
            payload: text(event.payload),
            transactionId: event.transactionId,
            chaincodeName: event.chaincodeName,
            blockNumber: event.blockNumber.toString(),
        }),
    },
    block: {
        open: (network, step, from) => network.newBlockEventsRequest(from),
        signed: (bytes, signature) => keyless.newSignedBlockEventsRequest(bytes, signature),
        checkpoint: (checkpointer, block) =>
            checkpointer.checkpointBlock(BigInt(block.getHeader().getNumber())),
        show: (block) => ({
            number: block.getHeader().getNumber(),
            previousHash: block.getHeader().getPreviousHash_asB64(),
            transactions: block.getData().getDataList().length,
        }),
    },
    filtered: {
        open: (network, step, from) => network.newFilteredBlockEventsRequest(from),
        signed: (bytes, signature) => keyless.newSignedFilteredBlockEventsRequest(bytes, signature),
        checkpoint: (checkpointer, block) =>
            checkpointer.checkpointBlock(BigInt(block.getNumber())),
        show: (block) => ({
            number: block.getNumber(),
            channel: block.getChannelId(),
            transactions: block.getFilteredTransactionsList().map((transaction) => ({
                id: transaction.getTxid(),
                type: transaction.getType(),
                code: transaction.getTxValidationCode(),
                events: (
                    transaction.getTransactionActions()?.getChaincodeActionsList() ?? []
                ).map((action) => ({
                    name: action.getChaincodeEvent().getEventName(),
                    payload: text(action.getChaincodeEvent().getPayload_asU8()),
                })),
            })),
        }),
    },
    private: {
        open: (network, step, from) => network.newBlockAndPrivateDataEventsRequest(from),
        signed: (bytes, signature) =>
            keyless.newSignedBlockAndPrivateDataEventsRequest(bytes, signature),
        checkpoint: (checkpointer, event) =>
            checkpointer.checkpointBlock(BigInt(event.getBlock().getHeader().getNumber())),
        show: (event) => {
            const shown = [];
            event.getPrivateDataMapMap().forEach((sets, transaction) => {
                for (const namespace of sets.getNsPvtRwsetList()) {
                    for (const collection of namespace.getCollectionPvtRwsetList()) {
                        shown.push({
                            transaction,
                            namespace: namespace.getNamespace(),
                            collection: collection.getCollectionName(),
                            set: collection.getRwset_asB64(),
                        });
                    }
                }
            });
            const block = event.getBlock();
            return {
                number: block.getHeader().getNumber(),
                transactions: block.getData().getDataList().length,
                private: shown,
            };
        },
    },
};

const streams = new Map();
const inMemory = new Map();
const checkpointerOf = async (step) => {
    if (step.checkpointFile !== undefined) {
        return checkpointers.file(step.checkpointFile);
    }
    if (step.checkpoint !== undefined) {
        if (!inMemory.has(step.checkpoint)) {
            inMemory.set(step.checkpoint, checkpointers.inMemory());
        }
        return inMemory.get(step.checkpoint);
    }
    return undefined;
};

const transactions = new Map();
const ACTIONS = {
    submit: async (step) =>
        text(await contractOf(step).submit(step.function, proposalOf(step))),
    // The shortest forms, without options.
    submitTransaction: async (step) =>
        text(await contractOf(step).submitTransaction(step.function, ...argumentsOf(step))),
    evaluateTransaction: async (step) =>
        text(await contractOf(step).evaluateTransaction(step.function, ...argumentsOf(step))),
    evaluate: async (step) =>
        text(await contractOf(step).evaluate(step.function, proposalOf(step))),
    submitAsync: async (step) => {
        const commit = await contractOf(step).submitAsync(step.function, proposalOf(step));
        return { result: text(commit.getResult()), ...outcome(await commit.getStatus()) };
    },
    // Several at once; each answer is a result or an error.
    together: async (step) =>
        Promise.all(
            step.steps.map(async (one) => {
                try {
                    return await ACTIONS[one.do](one);
                } catch (error) {
                    return { error: failure(error) };
                }
            }),
        ),
    endorse: async (step) => {
        const proposal = contractOf(step).newProposal(step.function, proposalOf(step));
        const transaction = await proposal.endorse();
        transactions.set(step.name, transaction);
        return { result: text(transaction.getResult()), transactionId: proposal.getTransactionId() };
    },
    submitEndorsed: async (step) => {
        const commit = await transactions.get(step.name).submit();
        return outcome(await commit.getStatus());
    },
    // Every message is carried as bytes to whoever has the key, and back with a signature.
    offline: async (step) => {
        const unsigned = contractOf(step, keyless).newProposal(step.function, proposalOf(step));
        const proposal = keyless.newSignedProposal(
            unsigned.getBytes(),
            await signatureOf(unsigned, { forged: step.forged === 'proposal' }),
        );
        if (step.evaluate) {
            return text(await proposal.evaluate());
        }
        const endorsed = await proposal.endorse();
        const transaction = keyless.newSignedTransaction(
            endorsed.getBytes(),
            await signatureOf(endorsed, { forged: step.forged === 'transaction' }),
        );
        const submitted = await transaction.submit();
        const commit = keyless.newSignedCommit(
            submitted.getBytes(),
            await signatureOf(submitted, { forged: step.forged === 'commit' }),
        );
        return { result: text(transaction.getResult()), ...outcome(await commit.getStatus()) };
    },
    // What became of a transaction, from its id alone.
    statusOf: async (step) => {
        const creator = new protos.msp.SerializedIdentity();
        creator.setMspid(identity.mspId);
        creator.setIdBytes(identity.credentials);
        const request = new protos.gateway.CommitStatusRequest();
        request.setChannelId(options.channel);
        request.setTransactionId(step.transactionId);
        request.setIdentity(creator.serializeBinary());
        const signed = new protos.gateway.SignedCommitStatusRequest();
        signed.setRequest(request.serializeBinary());
        return outcome(await gateway.newCommit(signed.serializeBinary()).getStatus());
    },
    listen: async (step) => {
        const kind = KINDS[step.kind ?? 'chaincode'];
        const network = (step.offline ? keyless : gateway).getNetwork(options.channel);
        let request = kind.open(network, step, {
            startBlock: step.startBlock === undefined ? undefined : BigInt(step.startBlock),
            checkpoint: await checkpointerOf(step),
        });
        if (step.offline) {
            request = kind.signed(request.getBytes(), await signatureOf(request, step));
        }
        const call =
            step.deadline === undefined ? undefined : { deadline: Date.now() + step.deadline };
        const events = await request.getEvents(call);
        streams.set(step.name, { kind, events, iterator: events[Symbol.asyncIterator]() });
        return null;
    },
    // The next event, remembered by a checkpointer if the step names one.
    next: async (step) => {
        const { kind, iterator } = streams.get(step.name);
        const { value, done } = await iterator.next();
        if (done) {
            return null;
        }
        const checkpointer = await checkpointerOf(step);
        if (checkpointer !== undefined) {
            await kind.checkpoint(checkpointer, value);
        }
        return kind.show(value);
    },
    // Events up to a block's number.
    until: async (step) => {
        const shown = [];
        for (;;) {
            const event = await ACTIONS.next(step);
            shown.push(event);
            if (event === null || event.number >= step.number) {
                return shown;
            }
        }
    },
    close: async (step) => {
        streams.get(step.name).events.close();
        streams.delete(step.name);
        return null;
    },
};

try {
    const answers = [];
    for (const step of options.steps) {
        try {
            answers.push(await ACTIONS[step.do](step));
        } catch (error) {
            answers.push({ error: failure(error) });
        }
    }
    for (const { events } of streams.values()) {
        events.close();
    }
    process.stdout.write(JSON.stringify(answers));
} finally {
    keyless.close();
    gateway.close();
    client.close();
}
