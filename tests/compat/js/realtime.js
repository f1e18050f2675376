// supabase-js over websocket, protocol version 2: changes, broadcast, presence. The table is made by the test.

import assert from "node:assert/strict";
import { connect, connectAsService, data, signUp, steps } from "./client.js";

const table = "realtime_js_watched";
const service = connectAsService();
const open = [service];

/** A queue that a callback fills and a step awaits. */
function queue() {
  const values = [];
  const waiting = [];
  return {
    put: (value) => (waiting.length ? waiting.shift()(value) : values.push(value)),
    get: () =>
      values.length
        ? Promise.resolve(values.shift())
        : new Promise((resolve, reject) => {
            const timer = setTimeout(() => reject(new Error("nothing came within 5 s")), 5000);
            waiting.push((value) => (clearTimeout(timer), resolve(value)));
          }),
    get size() {
      return values.length;
    },
  };
}

/** Subscribe, and wait until the server streams if there are changes to stream. */
async function subscribed(channel, streams = false) {
  const states = queue();
  const systems = queue();
  channel.on("system", {}, systems.put).subscribe((state, error) => states.put([state, error]));
  const [state, error] = await states.get();
  assert.equal(state, "SUBSCRIBED", String(error));
  if (streams) assert.equal((await systems.get()).status, "ok");
  return { channel, states };
}

/** Listen to changes of the table. */
async function changes(client, options = {}) {
  const heard = queue();
  const channel = client
    .channel(crypto.randomUUID())
    .on("postgres_changes", { event: "*", schema: "public", table, ...options }, heard.put);
  await subscribed(channel, true);
  return { channel, heard };
}

/** A client of its own, closed at the end. */
async function user() {
  const client = connect();
  open.push(client);
  return { client, id: (await signUp(client)).id };
}

const rows = () => service.from(table);

await steps({
  "inserts, updates and deletes are heard with typed rows": async () => {
    const { heard } = await changes(service);
    const row = { id: 1, big: 9007199254740991, exact: 1.5, doc: { a: [1] }, words: ["a", "b c"], yes: true };
    data(await rows().insert(row));
    const inserted = await heard.get();
    assert.equal(inserted.eventType, "INSERT");
    assert.deepEqual([inserted.schema, inserted.table, inserted.errors], ["public", table, null]);
    const { owner, ...rest } = inserted.new;
    assert.deepEqual(rest, row);
    assert.equal(owner, null);
    data(await rows().update({ exact: 2 }).eq("id", 1));
    const updated = await heard.get();
    assert.deepEqual([updated.eventType, updated.new.exact, updated.old], ["UPDATE", 2, { id: 1 }]);
    data(await rows().delete().eq("id", 1));
    const deleted = await heard.get();
    assert.deepEqual([deleted.eventType, deleted.old], ["DELETE", { id: 1 }]);
  },

  "filters hold": async () => {
    const { heard } = await changes(service, { event: "INSERT", filter: "exact=gte.10" });
    data(await rows().insert([{ id: 2, exact: 9.5 }, { id: 3, exact: 10 }]));
    assert.equal((await heard.get()).new.id, 3);
    assert.equal(heard.size, 0);
  },

  "two users hear their own rows, an anonymous one none": async () => {
    const [ann, bob] = [await user(), await user()];
    const anonymous = connect();
    open.push(anonymous);
    const event = { event: "INSERT" };
    const hears = {
      ann: (await changes(ann.client, event)).heard,
      bob: (await changes(bob.client, event)).heard,
      anonymous: (await changes(anonymous, event)).heard,
    };
    data(await rows().insert([{ id: 4, owner: bob.id }, { id: 5, owner: ann.id }]));
    assert.equal((await hears.ann.get()).new.id, 5);
    assert.equal((await hears.bob.get()).new.id, 4);
    assert.deepEqual([hears.ann.size, hears.bob.size, hears.anonymous.size], [0, 0, 0]);
  },

  "a filter that cannot work is an error": async () => {
    const states = queue();
    const channel = service
      .channel("broken")
      .on("postgres_changes", { event: "*", schema: "public", table, filter: "nope=eq.1" }, () => {})
      .on("system", {}, (message) => states.put(message));
    channel.subscribe();
    const message = await states.get();
    assert.equal(message.status, "error");
    assert.match(message.message, /invalid column for filter nope/);
    await service.removeChannel(channel);
  },

  "broadcasts are heard, as JSON and as bytes": async () => {
    const topic = crypto.randomUUID();
    const other = connect();
    open.push(other);
    const heard = queue();
    const channel = other.channel(topic).on("broadcast", { event: "*" }, heard.put);
    await subscribed(channel);
    const { channel: sender } = await subscribed(
      service.channel(topic, { config: { broadcast: { ack: true, self: false } } }),
    );
    assert.equal(await sender.send({ type: "broadcast", event: "text", payload: { n: 1 } }), "ok");
    const text = await heard.get();
    assert.deepEqual([text.event, text.payload], ["text", { n: 1 }]);
    const bytes = new Uint8Array([0, 1, 255]);
    assert.equal(await sender.send({ type: "broadcast", event: "bytes", payload: bytes.buffer }), "ok");
    const binary = await heard.get();
    assert.equal(binary.event, "bytes");
    assert.deepEqual(new Uint8Array(binary.payload), bytes);
    await sender.httpSend("http", { n: 2 });
    const http = await heard.get();
    assert.deepEqual([http.event, http.payload], ["http", { n: 2 }]);
  },

  "who asks for it hears itself": async () => {
    const heard = queue();
    const channel = service
      .channel(crypto.randomUUID(), { config: { broadcast: { self: true } } })
      .on("broadcast", { event: "echo" }, heard.put);
    await subscribed(channel);
    await channel.send({ type: "broadcast", event: "echo", payload: { n: 3 } });
    assert.deepEqual((await heard.get()).payload, { n: 3 });
  },

  "presence tells who is there": async () => {
    const topic = crypto.randomUUID();
    const other = connect();
    open.push(other);
    const joins = queue();
    const leaves = queue();
    const watching = other
      .channel(topic)
      .on("presence", { event: "join" }, joins.put)
      .on("presence", { event: "leave" }, leaves.put);
    await subscribed(watching);
    const { channel } = await subscribed(service.channel(topic, { config: { presence: { key: "guest" } } }));
    assert.equal(await channel.track({ mood: "fine" }), "ok");
    const joined = await joins.get();
    assert.deepEqual([joined.key, joined.newPresences[0].mood], ["guest", "fine"]);
    assert.equal(watching.presenceState().guest[0].mood, "fine");
    await channel.untrack();
    assert.equal((await leaves.get()).key, "guest");
  },

  "a private topic needs a policy that lets the user in, and hears what the database sends": async () => {
    const { client } = await user();
    const heard = queue();
    const room = client.channel("js-room", { config: { private: true } });
    await subscribed(room.on("broadcast", { event: "news" }, heard.put));
    data(await service.rpc("realtime_js_send", { topic: "js-room", payload: { n: 1 } }));
    const message = await heard.get();
    assert.deepEqual([message.event, message.payload.n, message.type], ["news", 1, "broadcast"]);
    assert.match(message.payload.id, /^[0-9a-f-]{36}$/);
    const anonymous = connect();
    open.push(anonymous);
    const states = queue();
    anonymous.channel("js-room", { config: { private: true } }).subscribe((state, error) => states.put([state, error]));
    const [state, error] = await states.get();
    assert.equal(state, "CHANNEL_ERROR");
    assert.match(String(error), /do not have permissions/);
  },

  "a channel that was removed hears nothing": async () => {
    const gone = await changes(service);
    const stays = await changes(service);
    assert.equal(await service.removeChannel(gone.channel), "ok");
    data(await rows().insert({ id: 6 }));
    assert.equal((await stays.heard.get()).new.id, 6);
    assert.equal(gone.heard.size, 0);
  },
});

await Promise.all(open.map((client) => client.removeAllChannels()));
process.exit();
