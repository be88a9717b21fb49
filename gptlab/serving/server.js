"use strict";
// The backend that asks the server which the page came from. See page.js for what a backend is.

const KEY = "gptlab key"; // in the session's storage, which the browser forgets with the tab
const LIKELY = 5;

/** What a server answers that will not do; the message is its own. */
class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** A response of the server, which must be a success; without `body` it is asked by GET. */
async function ask(address, body, signal) {
  const key = String.fromCharCode(...new TextEncoder().encode(sessionStorage.getItem(KEY) ?? "")); // a header has bytes
  const headers = { ...(key ? { authorization: `Bearer ${key}` } : {}), ...(body ? { "content-type": "application/json" } : {}) };
  const how = body ? { method: "POST", body: JSON.stringify(body) } : {};
  let found;
  try {
    found = await fetch(address, { ...how, headers, signal, cache: "no-store" });
  } catch (error) {
    throw signal?.aborted ? error : new Error(`The server does not answer: ${error.message}.`);
  }
  if (found.ok) return found;
  const said = await found.text();
  let message = said;
  try {
    message = JSON.parse(said).error.message;
  } catch {} // another server before this one has answered
  if (found.status === 401) byId("key-form").hidden = false;
  throw new Refused(found.status, message || `The server answers with status ${found.status}.`);
}

/** The objects of a stream of server-sent events, up to the last. */
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("The server has ended the answer too early.");
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const found = JSON.parse(data);
      if (found.error) throw new Error(found.error.message);
      yield found;
    }
  }
}

/** A model of /v1/models. */
class ServerBackend {
  constructor({ id, description, context_size, tokens, attention }) {
    const facts = [["model", description], ["sees", `${context_size.toLocaleString("en")} tokens, with what it writes`]];
    this.card = { name: id, facts, summary: description, blockSize: context_size, chat: tokens.chat, ends: tokens.ends };
    Object.assign(this.card, attention ?? { layers: 0, heads: 0 });
    this.begin = tokens.begin;
    this.names = Object.fromEntries(Object.entries(tokens.special).map(([name, token]) => [token, name]));
    this.bytes = new Map(); // of the tokens that the server has named
    this.scored = { ids: [], found: [] };
  }

  body(prompt, more) {
    return { model: this.card.name, prompt, ...more };
  }

  /** What the page shows of an entry of logprobs.content. */
  shown({ id, logprob, bytes, top_logprobs }) {
    this.bytes.set(id, Uint8Array.from(bytes));
    const likely = top_logprobs.map((each) => {
      this.bytes.set(each.id, Uint8Array.from(each.bytes));
      return { id: each.id, text: this.names[each.id] ?? each.token, probability: Math.exp(each.logprob) };
    });
    return logprob === null ? {} : { bits: Math.max(0, -logprob / Math.LN2), likely };
  }

  /** Ask for the tokens of a text or of ids, and return the ids. */
  async name(prompt, signal) {
    const { data } = await (await ask("v1/tokens", this.body(prompt), signal)).json();
    for (const { id, bytes } of data) this.bytes.set(id, Uint8Array.from(bytes));
    return data.map(({ id }) => id);
  }

  async encode(text, isTurn = false, signal = undefined) {
    if (isTurn && !text) return [];
    const ids = await this.name(text, signal);
    return isTurn ? ids.slice(this.begin.length) : ids;
  }

  async tokens(ids, signal) {
    const unknown = [...new Set(ids)].filter((id) => !this.bytes.has(id) && !(id in this.names));
    if (unknown.length) await this.name(unknown, signal);
    const add = this.stream();
    return ids.map(add);
  }

  /** Returns a function that returns a token with the text that it adds to those before. */
  stream() {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return (id) => {
      const special = this.names[id];
      const text = special === undefined ? decoder.decode(this.bytes.get(id), { stream: true }) : "";
      return { id, text, special };
    };
  }

  async *steps(ids, how, count, signal) {
    const add = this.stream();
    ids.forEach(add);
    const { temperature, topK, topP, minP, repetitionPenalty, seed } = how;
    const sampling = { temperature, top_k: topK, top_p: topP, min_p: minP, repetition_penalty: repetitionPenalty, seed };
    const most = Math.max(1, Math.min(count, this.card.blockSize - ids.length)); // the server says so where there is no room
    const body = this.body(ids, { ...sampling, logprobs: LIKELY, token_ids: true, max_tokens: most, stream: true });
    for await (const { choices } of eventsOf(await ask("v1/completions", body, signal))) {
      for (const entry of choices[0]?.logprobs?.content ?? []) {
        const seen = this.shown(entry);
        yield { ...add(entry.id), ...seen };
      }
    }
  }

  async score(ids, signal) {
    const { scored } = this;
    if (ids.length <= scored.ids.length && ids.every((id, at) => id === scored.ids[at])) return scored.found.slice(0, ids.length);
    const body = this.body(ids, { echo: true, logprobs: LIKELY, token_ids: true, max_tokens: 0 });
    const { content } = (await (await ask("v1/completions", body, signal)).json()).choices[0].logprobs;
    const found = content.map((entry) => this.shown(entry));
    this.scored = { ids, found };
    return found;
  }

  async attention(ids, signal) {
    const { count, heads, weights } = await (await ask("v1/attention", this.body(ids), signal)).json();
    const bytes = Uint8Array.from(atob(weights), (each) => each.charCodeAt(0)), each = (count * (count + 1)) / 2;
    const numbers = new DataView(bytes.buffer);
    return {
      count,
      weights(layer, head) {
        const found = new Float32Array(count * count);
        let at = (layer * heads + head) * each;
        for (let row = 0; row < count; row++) {
          for (let column = 0; column <= row; column++) found[row * count + column] = numbers.getUint16(2 * at++, true) / 65535;
        }
        return found;
      },
    };
  }
}

/** The form for the server's key, which is there where one is wanted. */
function addKeyForm() {
  const form = element("form"), field = element("div", "fields"), label = element("label", "", "Key of the server ");
  const key = element("input"), send = element("button", "", "Use this key");
  form.id = "key-form";
  form.autocomplete = "off";
  form.hidden = true;
  Object.assign(key, { id: "key", type: "password", required: true, autocomplete: "off" });
  label.append(key);
  field.append(label);
  form.append(field, send);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem(KEY, key.value.trim());
    key.value = "";
    form.hidden = true;
    if (!window.page) openModels();
  });
  byId("ask").before(form);
  byId("ask").hidden = true;
}

/** Ask the server for its models, and show one. */
async function openModels() {
  byId("summary").textContent = "Asking the server for its models.";
  let models;
  try {
    models = (await (await ask("v1/models")).json()).data;
  } catch (error) {
    byId("summary").textContent = error.message;
    if (error.status === 401) byId("key").focus();
    return;
  }
  const backends = models.map((model) => new ServerBackend(model));
  byId("ask").hidden = false;
  openPage(backends[0]);
  window.views = new Views(window.page, backends);
}

addKeyForm();
openModels();
