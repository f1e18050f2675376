// supabase-js: sign up, functions, tables.

import assert from "node:assert/strict";
import { connect, connectAsService, data, signUp, steps } from "./client.js";

const client = connect();
const service = connectAsService();
const batch = crypto.randomUUID();
const items = () => service.from("rest_items");
let user;

await steps({
  "a user signs up and signs in": async () => {
    user = await signUp(client);
    const again = connect();
    const session = data(await again.auth.signInWithPassword({ email: user.email, password: "correct horse" }));
    assert.equal(session.user.id, user.id);
    assert.equal(data(await again.auth.getUser()).user.email, user.email);
  },

  "functions are called as the user": async () => {
    const caller = data(await client.rpc("rest_caller"));
    assert.equal(caller.role, "authenticated");
    assert.equal(caller.uid, user.id);
    assert.equal(data(await client.rpc("rest_add", { a: 1, b: 2 })), 3);
    assert.equal(data(await client.rpc("rest_add", { a: 1 }, { get: true })), 2);
    const payload = { list: [1, { deep: "é" }], none: null };
    assert.deepEqual(data(await client.rpc("rest_echo", { payload })), payload);
    assert.equal(data(await client.rpc("rest_sizes", { ids: [], numbers: [1, 2] })), 2);
    assert.equal((await client.rpc("rest_nothing", { times: 1 })).status, 204);
  },

  "errors arrive with code, details and hint": async () => {
    const raised = await client.rpc("rest_fail", { code: "PT402", message: "said" });
    assert.equal(raised.status, 402);
    const { code, message, details, hint } = raised.error;
    assert.deepEqual([code, message, details, hint], ["PT402", "said", "a detail", "a hint"]);
    const missing = await client.rpc("rest_add", { nope: 1 });
    assert.equal(missing.status, 404);
    assert.equal(missing.error.code, "PGRST202");
    const refused = await client.from("rest_items").select();
    assert.equal(refused.status, 403);
    assert.equal(refused.error.code, "42501");
  },

  "rows are inserted, one or many": async () => {
    const one = await items().insert({ batch, name: "a" });
    assert.deepEqual([one.status, one.data], [201, null]);
    const many = data(await items().insert([{ batch, name: "b", amount: 1 }, { batch, name: "c", amount: 2 }]).select());
    assert.deepEqual(many.map((row) => [row.name, row.amount]), [["b", 1], ["c", 2]]);
    const twice = await items().insert({ batch, name: "a" });
    assert.deepEqual([twice.status, twice.error.code], [409, "23505"]);
  },

  "rows are upserted": async () => {
    const row = data(await items().upsert({ batch, name: "a", amount: 9 }, { onConflict: "batch,name" }).select().single());
    assert.equal(row.amount, 9);
  },

  "rows are selected, filtered, ordered and counted": async () => {
    const page = await items().select("name", { count: "exact" }).eq("batch", batch).order("name").range(0, 1);
    assert.deepEqual(data(page), [{ name: "a" }, { name: "b" }]);
    assert.deepEqual([page.count, page.status], [3, 206]);
    const head = await items().select("*", { count: "exact", head: true }).eq("batch", batch);
    assert.deepEqual([head.count, head.data], [3, null]);
    const some = items().select("name").eq("batch", batch).or("name.eq.c,amount.in.(9,10)").not("name", "is", null);
    assert.deepEqual(data(await some.order("name", { ascending: false })), [{ name: "c" }, { name: "a" }]);
  },

  "exactly one row, or none": async () => {
    const films = () => client.from("rest_films").select("title");
    assert.deepEqual(data(await films().eq("id", 3).single()), { title: "Sans toit ni loi" });
    assert.equal(data(await films().eq("id", 77).maybeSingle()), null);
    const none = await films().eq("id", 77).single();
    assert.deepEqual([none.status, none.error.code, none.error.details], [406, "PGRST116", "The result contains 0 rows"]);
    const several = await films().maybeSingle();
    assert.equal(several.error.code, "PGRST116");
  },

  "related rows are embedded": async () => {
    const directors = client.from("rest_directors").select("name, films:rest_films!inner(title)");
    const found = data(await directors.eq("films.year", 1985));
    assert.deepEqual(found, [{ name: "Agnès Varda", films: [{ title: "Sans toit ni loi" }] }]);
  },

  "rows are updated and deleted": async () => {
    const updated = await items().update({ amount: 5 }).eq("batch", batch).eq("name", "b").select("amount").single();
    assert.deepEqual(data(updated), { amount: 5 });
    assert.equal((await items().delete().eq("batch", batch).eq("name", "b")).status, 204);
    const left = await items().delete({ count: "exact" }).eq("batch", batch);
    assert.equal(left.count, 2);
  },

  "each user sees their own rows only": async () => {
    const note = data(await client.from("rest_notes").insert({ body: "mine" }).select().single());
    assert.equal(note.owner_id, user.id);
    const other = connect();
    await signUp(other);
    assert.deepEqual(data(await other.from("rest_notes").select()), []);
    assert.deepEqual(data(await client.from("rest_notes").select("body")), [{ body: "mine" }]);
  },

  "signing out leaves the anonymous role": async () => {
    assert.equal((await client.auth.signOut()).error, null);
    assert.equal(data(await client.rpc("rest_caller")).role, "anon");
  },
});
