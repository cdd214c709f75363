// The conversation: it is streamed, and stored for a reload.

import { ask, Problem } from "./api.js";
import { showAnswer } from "./answer.js";
import { $, make, tell } from "./dom.js";
import { say } from "./messages.js";

const STORED_TURNS = 50; // turns that a reload restores
const HISTORY_MESSAGES = 20; // messages that are sent with a question
let base = "";
let turns = [];
let running = null;

const place = () => `conversation:${base}`;

export function useBase(name) {
  if (running) running.abort();
  base = name;
  try {
    turns = JSON.parse(sessionStorage.getItem(place()) || "[]");
  } catch {
    turns = [];
  }
  show();
}

// Draws all turns again, for example after the language has changed.
export function show() {
  const thread = $("thread");
  thread.replaceChildren();
  if (!turns.length) thread.append(make("p", { class: "welcome" }, base ? say("welcome") : ""));
  for (const turn of turns) {
    const node = article(turn.question);
    node.append(...showAnswer(base, turn.answer));
    thread.append(node);
  }
  $("clear").hidden = !turns.length;
  $("send").disabled = $("question").disabled = !base;
}

function article(question) {
  return make("article", {},
    make("p", { class: "asked" }, make("span", { class: "unseen" }, `${say("you")}: `), question));
}

function keep() {
  turns = turns.slice(-STORED_TURNS);
  try {
    sessionStorage.setItem(place(), JSON.stringify(turns));
  } catch {
    // Storage is full: the conversation stays on the page, but a reload loses it.
  }
  $("clear").hidden = !turns.length;
}

async function submit(question) {
  const thread = $("thread");
  if (!turns.length) thread.replaceChildren();
  const node = article(question);
  const text = make("div", { class: "text streaming" });
  const state = make("p", { class: "soft" }, say("searching"));
  node.append(state, text);
  thread.append(node);
  toTop(node);
  tell(say("searching"));
  const history = turns.flatMap((turn) => [
    { role: "user", content: turn.question },
    { role: "assistant", content: turn.answer.answer },
  ]).slice(-HISTORY_MESSAGES);
  const current = base;
  running = new AbortController();
  busy(true);
  let answer = null;
  try {
    const body = { question, knowledge_base: base, history };
    for await (const [event, data] of ask(body, running.signal)) {
      if (event === "passages") state.textContent = say("writing");
      else if (event === "text") text.append(data.text);
      else if (event === "citations") answer = data;
      else if (event === "error") throw new Problem(500, data.message, null);
    }
    if (!answer) throw new Problem(0, say("brokenOff"), null);
    state.remove();
    text.replaceWith(...showAnswer(current, answer));
    if (current === base) {
      turns.push({ question, answer });
      keep();
    }
    toTop(node);
    tell(`${say(answer.refused ? "notFound" : "answer")}: ${answer.answer}`);
  } catch (error) {
    state.remove();
    text.classList.remove("streaming");
    const message = failed(error);
    node.append(make("p", { class: "problem" }, message), retry(node, question));
    tell(message);
  } finally {
    running = null;
    busy(false);
  }
}

// scrollIntoView would also scroll the elements around the thread.
function toTop(node) {
  $("thread").scrollTop = node.offsetTop - 8;
}

function failed(error) {
  if (error.name === "AbortError") return say("stopped");
  if (error instanceof Problem) {
    return error.after ? `${error.message} ${say("later", error.after)}` : error.message;
  }
  if (error instanceof TypeError) return say("brokenOff"); // this is how fetch reports it
  throw error;
}

function retry(node, question) {
  return make("button", {
    type: "button", class: "quiet", onclick: () => {
      if (running) return;
      node.remove();
      submit(question);
    },
  }, say("again"));
}

function busy(is) {
  $("send").hidden = is;
  $("stop").hidden = !is;
}

function grow() {
  const field = $("question");
  field.rows = Math.min(8, field.value.split("\n").length);
}

export function prepareChat() {
  const field = $("question");
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = field.value.trim();
    if (!question || running || !base) return;
    field.value = "";
    grow();
    submit(question);
  });
  field.addEventListener("input", grow);
  field.addEventListener("keydown", (event) => {
    // Enter that ends a word of an input method does not send the question.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    $("ask").requestSubmit();
  });
  $("stop").onclick = () => {
    if (running) running.abort();
    field.focus();
  };
  $("clear").onclick = () => {
    if (running) running.abort();
    turns = [];
    keep();
    show();
    field.focus();
  };
}
