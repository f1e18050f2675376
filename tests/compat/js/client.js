// What every script here begins with: the official client for the stack under test, and steps that report.

import assert from "node:assert/strict";
import { createClient } from "@supabase/supabase-js";
import WebSocket from "ws";

const url = process.env.SUPABASE_URL;

/** A new client; anonymous unless another key is given. */
export function connect(key = process.env.SUPABASE_ANON_KEY) {
  return createClient(url, key, {
    auth: { persistSession: false, autoRefreshToken: false },
    realtime: { transport: WebSocket },
  });
}

/** A client with every right. */
export const connectAsService = () => connect(process.env.SUPABASE_SERVICE_ROLE_KEY);

/** The data of an answer that must not be an error. */
export function data(answer) {
  assert.equal(answer.error, null, JSON.stringify(answer.error));
  return answer.data;
}

/** Run steps by name, in order; say which passed, so that a failure is found. */
export async function steps(named) {
  for (const [name, step] of Object.entries(named)) {
    try {
      await step();
      console.log(`ok - ${name}`);
    } catch (error) {
      console.log(`not ok - ${name}\n${error.stack}`);
      process.exitCode = 1;
      return;
    }
  }
}

/** Sign up a new user with this client. */
export async function signUp(client) {
  const email = `${crypto.randomUUID()}@example.com`;
  return data(await client.auth.signUp({ email, password: "correct horse" })).user;
}
