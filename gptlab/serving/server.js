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

class ServerBackend {
  constructor(model) {
    this.choose(model);
  }

  /** Let a model of /v1/models be the one that is asked. */
  choose({ id, description, context_size, tokens }) {
    const facts = [["model", description], ["sees", `${context_size.toLocaleString("en")} tokens, with what it writes`]];
    this.card = { name: id, facts, summary: description, blockSize: context_size, layers: 0, heads: 0 }; // no attention
    Object.assign(this.card, { chat: tokens.chat, ends: tokens.ends });
    this.begin = tokens.begin;
    this.names = Object.fromEntries(Object.entries(tokens.special).map(([name, token]) => [token, name]));
    this.bytes = new Map(); // of the tokens that the server has named
    this.scored = { ids: [], found: [] };
  }

  body(prompt, more) {
    return { model: this.card.name, prompt, logprobs: LIKELY, token_ids: true, ...more };
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

  /** Let the server read a prompt, a text or ids, and return its ids. */
  async read(prompt, signal) {
    const response = await ask("v1/completions", this.body(prompt, { echo: true, max_tokens: 0 }), signal);
    const { content } = (await response.json()).choices[0].logprobs;
    this.scored = { ids: content.map(({ id }) => id), found: content.map((entry) => this.shown(entry)) };
    return this.scored.ids;
  }

  async encode(text, isTurn = false, signal = undefined) {
    if (isTurn && !text) return [];
    const ids = await this.read(text, signal);
    return isTurn ? ids.slice(this.begin.length) : ids;
  }

  async decode(ids) {
    return (await this.tokens(ids)).map((token) => token.text).join("");
  }

  async tokens(ids) {
    if (ids.some((id) => !this.bytes.has(id) && !(id in this.names))) await this.read(ids);
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
    const body = this.body(ids, { ...sampling, max_tokens: most, stream: true });
    for await (const { choices } of eventsOf(await ask("v1/completions", body, signal))) {
      for (const entry of choices[0]?.logprobs?.content ?? []) {
        const seen = this.shown(entry);
        yield { ...add(entry.id), ...seen };
      }
    }
  }

  async score(ids, signal) {
    const isRead = ids.length <= this.scored.ids.length && ids.every((id, at) => id === this.scored.ids[at]);
    if (!isRead) await this.read(ids, signal);
    return this.scored.found.slice(0, ids.length);
  }
}

/** The fields above the prompt: the key, where one is wanted, and the model, where there are several. */
function addFields() {
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
  const models = element("p"), choice = element("label", "", "Model "), select = element("select");
  models.id = "models";
  models.hidden = true;
  choice.append(select);
  models.append(choice);
  byId("ask").before(form, models);
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
  const backend = new ServerBackend(models[0]);
  byId("ask").hidden = false;
  openPage(backend);
  const select = byId("models").querySelector("select");
  select.replaceChildren(...models.map(({ id }, at) => new Option(id, String(at))));
  byId("models").hidden = models.length < 2;
  select.addEventListener("change", () => {
    window.page.clear(() => {
      backend.choose(models[Number(select.value)]);
      window.page.describe();
    });
  });
}

addFields();
openModels();
