// A sample on the page.

import { words } from "./words.js";

// Bits at which a darker shade begins. A token that the model gave 1/2 costs one bit, 1/256 eight.
export const SHADES = [0, 1, 2, 4, 6, 8, 10, 13];

const shadeOf = (bits) => SHADES.filter((begin) => bits >= begin).length - 1;

/** Make a node with a class and a text. */
function made(tag, text = "", name = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  if (name) node.className = name;
  return node;
}

function button(text, act) {
  const node = made("button", text);
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}

export class Card {
  /**
   * @param {string} model Whose sample it is.
   * @param {object} body What is asked for.
   * @param {number} copy Which sample of the prompt.
   * @param {(text: string) => void} reuse Takes prompt and text, to go on with them.
   */
  constructor(model, body, copy, reuse) {
    this.count = 0; // tokens
    this.bits = 0;
    this.told = 0; // bits of tokens whose character is still to come
    this.length = 0; // characters of text, as the server counts them
    this.reason = null;
    this.node = made("article");
    this.node.setAttribute("aria-busy", "true");
    const title = made("h2", model);
    title.append(made("small", body.temperature === 0 ? words.greedy : words.seedOf(body.seed + copy)));
    const head = made("header");
    head.append(title);
    this.text = made("p", "", "text");
    this.text.append(made("span", body.prompt, "given"));
    this.facts = made("span");
    const actions = made("div");
    const copying = button(words.copy, async () => {
      await navigator.clipboard.writeText(this.text.textContent);
      copying.textContent = words.copied;
    });
    actions.append(copying, button(words.reuse, () => reuse(this.text.textContent)));
    const foot = made("footer");
    foot.append(this.facts, actions);
    this.node.append(head, this.text, foot);
  }

  /** Take more of the sample, as an event brings it. */
  add(choice) {
    const { tokens, token_logprobs: logprobs, top_logprobs: tops, text_offset: offsets } = choice.logprobs;
    const characters = Array.from(choice.text);
    tokens.forEach((token, number) => {
      const bits = -logprobs[number] / Math.LN2;
      this.count += 1;
      this.bits += bits;
      this.told += bits;
      const end = number + 1 < tokens.length ? offsets[number + 1] - this.length : characters.length;
      const begin = number ? offsets[number] - this.length : 0; // bytes before may have made no character
      const text = characters.slice(begin, end).join("");
      if (!text) return; // only with the next token is it a character
      const span = made("span", text);
      const shade = shadeOf(this.told);
      if (shade) span.className = `s${shade}`;
      span.title = `${this.told.toFixed(1)} ${words.bits}. ${words.likelier} ${likeliest(tops[number])}`;
      this.told = 0;
      this.text.append(span);
    });
    this.length += characters.length;
    this.reason = choice.finish_reason ?? this.reason;
    this.tell();
    if (this.reason) this.node.setAttribute("aria-busy", "false");
  }

  /** Say that no more will come. */
  end() {
    this.reason ??= "stopped";
    this.node.setAttribute("aria-busy", "false");
    this.tell();
  }

  tell() {
    const facts = [words.tokens(this.count)];
    if (this.count) facts.push(words.bitsEach((this.bits / this.count).toFixed(1)));
    if (this.reason) facts.push(words.ends[this.reason]);
    this.facts.textContent = facts.join(" · ");
  }
}

function likeliest(top) {
  return Object.entries(top)
    .sort((one, other) => other[1] - one[1])
    .slice(0, 3)
    .map(([token, logprob]) => `${JSON.stringify(token)} ${(100 * Math.exp(logprob)).toFixed(0)} %`)
    .join(", ");
}
