// A chaincode on Fabric's Node runtime that does whatever its caller asks of the stub.
"use strict";

const { Contract } = require("fabric-contract-api");
const { KeyEndorsementPolicy } = require("fabric-shim");

// The runtime counts a function's parameters, so lists come as JSON.
const list = (argument) => JSON.parse(argument);
const text = (bytes) => Buffer.from(bytes ?? "").toString();

/** Keys and values of a query; `limit` leaves it early, as a for-await loop with a break does. */
async function rows(results, limit = Infinity) {
  const found = [];
  for await (const { key, value } of results) {
    found.push([key, text(value)]);
    if (found.length >= limit) break;
  }
  return found;
}

class Everything extends Contract {
  constructor() {
    super("everything");
  }

  async who({ stub, clientIdentity }) {
    const { seconds, nanos } = stub.getTxTimestamp();
    return {
      msp: clientIdentity.getMSPID(),
      role: clientIdentity.getAttributeValue("gridledger.role"),
      channel: stub.getChannelID(),
      transaction: stub.getTxID(),
      seconds: Number(seconds),
      nanos,
      transient: Object.fromEntries([...stub.getTransient()].map(([key, value]) => [key, text(value)])),
      proposal: stub.getSignedProposal().signature.length > 0,
    };
  }

  // Public state

  async put({ stub }, key, value) {
    await stub.putState(key, Buffer.from(value));
  }

  async get({ stub }, key) {
    return text(await stub.getState(key));
  }

  async remove({ stub }, key) {
    await stub.deleteState(key);
  }

  /** Reads its own write, which it must not see, among writes that nobody awaits one by one. */
  async fill({ stub }, prefix, count) {
    const keys = Array.from({ length: Number(count) }, (_, i) => prefix + String(i).padStart(5, "0"));
    await Promise.all(keys.map((key) => stub.putState(key, Buffer.from(`value of ${key}`))));
    return (await Promise.all(keys.map((key) => stub.getState(key)))).map(text);
  }

  async increment({ stub }, key) {
    const value = Number(text(await stub.getState(key)) || 0) + 1;
    await stub.putState(key, Buffer.from(String(value)));
    return value;
  }

  async event({ stub }, name, payload) {
    stub.setEvent(name, Buffer.from(payload));
  }

  // Queries

  async range({ stub }, start, end, limit) {
    return rows(stub.getStateByRange(start, end), Number(limit));
  }

  async two({ stub }, start, end) {
    const [one, other] = await Promise.all([
      rows(stub.getStateByRange(start, end)),
      rows(stub.getStateByRange(start, end)),
    ]);
    return [one.length, other.length];
  }

  async page({ stub }, start, end, size, bookmark) {
    const { iterator, metadata } = await stub.getStateByRangeWithPagination(start, end, Number(size), bookmark);
    const keys = [];
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) keys.push(next.value.key);
    await iterator.close();
    return { keys, count: metadata.fetchedRecordsCount, bookmark: metadata.bookmark };
  }

  async pageAndPut(context, start, end) {
    const page = await this.page(context, start, end, "2", "");
    await context.stub.putState("after", Buffer.from(page.bookmark));
  }

  async compose({ stub }, type, attributes) {
    const key = stub.createCompositeKey(type, list(attributes));
    await stub.putState(key, Buffer.from(attributes));
  }

  async composed({ stub }, type, attributes) {
    const found = await rows(stub.getStateByPartialCompositeKey(type, list(attributes)));
    return found.map(([key, value]) => [stub.splitCompositeKey(key).attributes, value]);
  }

  async composedPage({ stub }, type, size, bookmark) {
    const { iterator, metadata } = await stub.getStateByPartialCompositeKeyWithPagination(
      type, [], Number(size), bookmark);
    const found = [];
    for (let next = await iterator.next(); !next.done; next = await iterator.next()) {
      found.push(stub.splitCompositeKey(next.value.key).attributes);
    }
    return { found, bookmark: metadata.bookmark };
  }

  async history({ stub }, key) {
    const found = [];
    for await (const { txId, value, isDelete, timestamp } of stub.getHistoryForKey(key)) {
      found.push({ txId, value: text(value), isDelete, seconds: Number(timestamp.seconds) });
    }
    return found;
  }

  async rich({ stub }, query) {
    return rows(stub.getQueryResult(query));
  }

  // Private data; the value comes as transient data

  async putPrivate({ stub }, collection, key) {
    await stub.putPrivateData(collection, key, stub.getTransient().get("value"));
  }

  async getPrivate({ stub }, collection, key) {
    return text(await stub.getPrivateData(collection, key));
  }

  async privateHash({ stub }, collection, key) {
    return Buffer.from(await stub.getPrivateDataHash(collection, key)).toString("hex");
  }

  async removePrivate({ stub }, collection, key) {
    await stub.deletePrivateData(collection, key);
  }

  async purgePrivate({ stub }, collection, key) {
    await stub.purgePrivateData(collection, key);
  }

  async privateRange({ stub }, collection, start, end) {
    return rows(stub.getPrivateDataByRange(collection, start, end));
  }

  async composePrivate({ stub }, collection, type, attributes) {
    const key = stub.createCompositeKey(type, list(attributes));
    await stub.putPrivateData(collection, key, Buffer.from("composed"));
  }

  async composedPrivate({ stub }, collection, type, attributes) {
    const found = await rows(stub.getPrivateDataByPartialCompositeKey(collection, type, list(attributes)));
    return found.map(([key]) => stub.splitCompositeKey(key).attributes);
  }

  // Policies of keys

  async setPolicy({ stub }, key, organizations) {
    const policy = new KeyEndorsementPolicy();
    policy.addOrgs("PEER", ...list(organizations));
    await stub.setStateValidationParameter(key, policy.getPolicy());
  }

  async getPolicy({ stub }, key) {
    const stored = await stub.getStateValidationParameter(key);
    return stored?.length ? new KeyEndorsementPolicy(stored).listOrgs() : [];
  }

  async setPrivatePolicy({ stub }, collection, key, organizations) {
    const policy = new KeyEndorsementPolicy();
    policy.addOrgs("PEER", ...list(organizations));
    await stub.setPrivateDataValidationParameter(collection, key, policy.getPolicy());
  }

  async getPrivatePolicy({ stub }, collection, key) {
    const stored = await stub.getPrivateDataValidationParameter(collection, key);
    return stored?.length ? new KeyEndorsementPolicy(stored).listOrgs() : [];
  }

  // Other chaincodes

  async call({ stub }, chaincode, channel, args) {
    const { status, message, payload } = await stub.invokeChaincode(chaincode, list(args), channel);
    return { status, message, payload: text(payload) };
  }

  async callAndPut({ stub }, chaincode, key, value) {
    stub.setEvent("outer", Buffer.from(key));
    await stub.putState(key, Buffer.from(`outer ${value}`));
    const { status } = await stub.invokeChaincode(chaincode, ["putWithEvent", key, `inner ${value}`]);
    return status;
  }

  async putWithEvent({ stub }, key, value) {
    stub.setEvent("inner", Buffer.from(key));
    await stub.putState(key, Buffer.from(value));
  }

  // Faults

  async refuse(_, sentence) {
    throw new Error(sentence);
  }

  async sleep({ stub }, milliseconds) {
    await new Promise((done) => setTimeout(done, Number(milliseconds)));
    return text(await stub.getState("slept"));
  }

  async big(_, size) {
    return "x".repeat(Number(size));
  }

  async die() {
    process.exit(7);
  }
}

exports.contracts = [Everything];
