// The page: it asks for samples, and shows them as they come.

import { Card, SHADES } from "./card.js";
import { speak, words } from "./words.js";

const at = (id) => document.getElementById(id);
const numbers = ["max_tokens", "n", "temperature", "top_k", "top_p"];
let models = [];
let running = null; // what stops the samples under way

function headers() {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}

/** Show what went wrong, or nothing. */
function complain(message) {
  at("error").textContent = message ?? "";
  at("error").hidden = !message;
}

/** Return an answer, or throw what the server says is wrong with the question. */
async function ask(path, options) {
  const answer = await fetch(path, { headers: headers(), ...options }).catch((error) => {
    throw error.name === "AbortError" ? error : new Error(words.noServer);
  });
  if (answer.ok) return answer;
  if (answer.status === 401) {
    at("keys").hidden = false;
    at("key").focus();
    throw new Error(words.needsKey);
  }
  const said = await answer.json().catch(() => null);
  throw new Error(said?.error?.message ?? `${answer.status} ${answer.statusText}`);
}

async function findModels() {
  models = (await (await ask("v1/models")).json()).data.map((model) => model.id);
  document.title = models.join(", ");
  at("title").textContent = models.join(" · ");
  at("model").replaceChildren(...models.map((name) => new Option(name, name)));
  if (models.length > 1) {
    at("model").add(new Option(words.both, ""), 0);
    at("model").value = "";
  }
  at("models").hidden = models.length < 2;
}

/** Yield the events of a streamed answer. */
async function* eventsOf(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

/** Write the samples of one model into their cards. */
async function write(model, body, cards, told) {
  const answer = await ask("v1/completions", {
    method: "POST",
    body: JSON.stringify({ ...body, model }),
    signal: running.signal,
  });
  for await (const event of eventsOf(answer)) {
    for (const choice of event.choices) cards[choice.index].add(choice);
    told();
  }
}

function question() {
  const body = { prompt: at("prompt").value, stream: true, logprobs: 5 };
  for (const name of numbers) body[name] = Number(at(name).value);
  body.seed = at("seed").value === "" ? Math.floor(Math.random() * 2 ** 31) : Number(at("seed").value);
  const stops = at("stops").value.split("\n").filter((line) => line);
  if (stops.length) body.stop = stops;
  return body;
}

async function start() {
  complain();
  if (!models.length) await findModels();
  if (!at("form").reportValidity()) return;
  const body = question();
  const asked = at("model").value ? [at("model").value] : models;
  const run = document.createElement("div");
  run.className = asked.length > 1 ? "run pairs" : "run";
  const cards = Object.fromEntries(asked.map((name) => [name, []]));
  for (let copy = 0; copy < body.n; copy++) {
    for (const name of asked) {
      const card = new Card(name, body, copy, (text) => {
        at("prompt").value = text;
        at("prompt").focus();
      });
      cards[name].push(card);
      run.append(card.node);
    }
  }
  at("samples").prepend(run);
  if (run.getBoundingClientRect().top > innerHeight * 0.75) at("status").scrollIntoView();
  const all = Object.values(cards).flat();
  const began = performance.now();
  const seconds = () => (performance.now() - began) / 1000;
  const count = () => all.reduce((sum, card) => sum + card.count, 0);
  const told = () => {
    at("status").textContent = words.writing(count(), (count() / seconds()).toFixed(0));
  };
  at("status").textContent = words.reading;
  busy(new AbortController());
  try {
    await Promise.all(asked.map((name) => write(name, body, cards[name], told)));
    at("status").textContent = words.written(count(), seconds().toFixed(1));
  } catch (error) {
    const stopped = error.name === "AbortError";
    at("status").textContent = count() || stopped ? words.stopped(count()) : "";
    if (!stopped) complain(error.message);
    running.abort(); // one model's mistake ends the other's samples
    if (!count()) run.remove();
  } finally {
    for (const card of all) card.end();
    busy(null);
  }
}

function busy(controller) {
  running = controller;
  at("start").disabled = Boolean(controller);
  at("stop").disabled = !controller;
}

function shade() {
  at("samples").classList.toggle("shaded", at("shade").checked);
  at("legend").hidden = !at("shade").checked;
}

function legend() {
  const item = (text, shade) => {
    const node = document.createElement("li");
    node.textContent = text;
    if (shade) node.className = `s${shade}`;
    return node;
  };
  const spans = SHADES.map((begin, shade) => item(`${begin}${shade === SHADES.length - 1 ? "+" : `–${SHADES[shade + 1]}`}`, shade));
  spans[spans.length - 1].textContent += ` ${words.bits}`;
  at("legend").className = "shaded";
  at("legend").replaceChildren(item(words.calm), ...spans, item(words.striking));
}

speak();
legend();
at("more").open = matchMedia("(min-width: 48rem)").matches;
at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) start().catch((error) => complain(error.message));
});
at("stop").addEventListener("click", () => running?.abort());
at("shade").addEventListener("change", shade);
addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("form").requestSubmit();
});
shade();
findModels().catch((error) => complain(error.message));
