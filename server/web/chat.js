// The conversation on the page: asked, streamed, and stored from the moment a question is sent.

import { address, go, wholeLink } from "./address.js";
import { hidePreview, showAnswer } from "./answer.js";
import { ask, Problem } from "./api.js";
import { drawConversations, load, nameOf, newConversation, onStoredElsewhere, remove, store } from "./conversations.js";
import { $, button, copy, make, notice, points, reason, save, tell } from "./dom.js";
import { answerText, asMarkdown, asWord } from "./export.js";
import { say } from "./messages.js";

const HISTORY_MESSAGES = 20; // messages that are sent with a question
const LONGEST_MESSAGE = 20_000; // characters of one of them
const LONGEST_QUESTION = 2000; // characters, the server's limit
const STORE_INTERVAL = 1000; // ms between two times that an unfinished answer is stored
let base = "";
let conversation = null;
let running = null; // { turn, controller, phase, share }
let welcome = () => [];
let refusalNote = () => "";
const nodes = new WeakMap(); // turn -> its element

// Shows a conversation of the knowledge base: the one that the address names, or a new one.
export async function useBase(name) {
  if (name !== base) stop();
  base = name;
  await openConversation(address().conversation, { answer: address().answer });
}

export async function openConversation(id, { answer = "" } = {}) {
  if (running && conversation && conversation.id === id) return show();
  stop();
  const found = await load(id);
  if (id && !found && base) notice(say("noSuchConversation"));
  conversation = found || newConversation();
  go({ base, conversation: found ? id : null, answer: found ? answer : null });
  show();
  await drawConversations(conversation.id);
  const target = nodes.get(conversation.turns[Number(answer) - 1]);
  if (answer && target) toTop(target);
  else $("thread").scrollTop = $("thread").scrollHeight;
  return undefined;
}

// Draws all turns again, for example after the language has changed.
export function show() {
  const thread = $("thread");
  const at = thread.scrollTop;
  hidePreview();
  thread.replaceChildren(...(conversation && conversation.turns.length
    ? conversation.turns.map(article) : welcome()));
  thread.scrollTop = at;
  head();
  $("send").disabled = $("question").disabled = !base;
}

export const isEmpty = () => !conversation || !conversation.turns.length;

function head() {
  const turns = conversation ? conversation.turns : [];
  $("clear").hidden = $("conversation-menu-button").hidden = !turns.length;
  $("conversation-title").textContent = turns.length ? nameOf(conversation) : "";
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  const scope = (conversation && conversation.scope) || [];
  $("scope").hidden = !scope.length;
  $("scope").replaceChildren(make("span", { class: "soft" }, say("onlyIn")), ...scope.map((name) => button(
    `${name} ×`, () => limit(scope.filter((each) => each !== name)), { "aria-label": say("unscope", name), title: name },
  )));
}

// The documents that this conversation asks from now on; none: all.
function limit(names) {
  conversation.scope = names;
  if (conversation.turns.length) store(conversation);
  head();
  $("question").focus();
}

export const askOnly = (names) => limit([...new Set([...(conversation.scope || []), ...names])]);

// A name as a pattern that matches only itself.
const pattern = (name) => name.replace(/[*?[]/g, "[$&]");

function article(turn) {
  const number = conversation.turns.indexOf(turn) + 1;
  const node = make("article", {},
    make("p", { class: "asked" }, make("span", { class: "unseen" }, `${say("you")}: `), turn.question));
  nodes.set(turn, node);
  if (running && running.turn === turn) {
    node.append(make("p", { class: "soft" }, say(running.phase, running.share)), make("div", { class: "text answer streaming" }, turn.text));
    return node;
  }
  if (turn.answer) node.append(...showAnswer(base, turn.answer, turn.answer.refused ? refusalNote() : ""));
  else {
    if (turn.text) node.append(make("div", { class: "text answer" }, turn.text));
    node.append(make("p", { class: "problem" }, turn.problem ? say(turn.problem) : turn.message || say("brokenOff")));
  }
  node.append(make("div", { class: "actions" },
    turn.answer ? button(say("copy"), () => copy(answerText(turn.answer))) : null,
    !turn.answer || turn.answer.refused ? button(say("again"), () => again(turn)) : null,
    button(say("edit"), () => edit(turn)),
    button(say("linkAnswer"), () => copy(wholeLink({ conversation: conversation.id, answer: number })))));
  return node;
}

function redraw(turn) {
  const before = nodes.get(turn);
  if (before && before.isConnected) before.replaceWith(article(turn));
}

async function submit(question) {
  const turn = { question, answer: null, text: "" };
  if (!conversation.turns.length) $("thread").replaceChildren();
  conversation.turns.push(turn);
  $("thread").append(article(turn));
  await answerTurn(turn);
}

function again(turn) {
  if (running) return;
  Object.assign(turn, { answer: null, text: "", problem: "", message: "" });
  answerTurn(turn);
}

function edit(turn) {
  const field = $("question");
  field.value = turn.question;
  typed();
  field.focus();
}

async function answerTurn(turn) {
  const mine = conversation;
  const controller = new AbortController();
  const own = running = { turn, controller, phase: "searching", share: 0 };
  const phase = (name, share = 0) => {
    Object.assign(own, { phase: name, share: Math.round(share * 100) });
    redraw(turn);
  };
  mine.changed = Date.now();
  const stored = store(mine, { unfinished: true });
  go({ base, conversation: mine.id, answer: null });
  redraw(turn);
  head();
  toTop(nodes.get(turn));
  tell(say("searching"));
  const history = mine.turns.slice(0, mine.turns.indexOf(turn)).filter((each) => each.answer).flatMap((each) => [
    { role: "user", content: each.question },
    { role: "assistant", content: points(each.answer.answer).slice(0, LONGEST_MESSAGE).join("") },
  ]).slice(-HISTORY_MESSAGES);
  let last = Date.now();
  try {
    await stored;
    drawConversations(mine.id);
    const scope = { places: (mine.scope || []).map(pattern) };
    const asked = { question: turn.question, knowledge_base: mine.base, history, scope };
    for await (const [event, data] of ask(asked, controller.signal)) {
      if (event === "passages") phase("writing");
      else if (event === "reading") phase("readingPassages", data.share);
      else if (event === "text") {
        if (own.phase !== "writing") phase("writing");
        turn.text += data.text;
        nodes.get(turn).querySelector(".streaming")?.append(data.text);
      } else if (event === "citations") turn.answer = data;
      else if (event === "error") throw new Problem(500, data.message, null);
      if (Date.now() - last > STORE_INTERVAL) {
        last = Date.now();
        store(mine, { unfinished: true });
      }
    }
    if (!turn.answer) throw new Problem(0, "", null);
    turn.text = "";
    tell(`${say("answer")}: ${turn.answer.answer}`);
  } catch (error) {
    if (error.name === "AbortError") turn.problem = "stopped";
    else turn.message = reason(error);
    tell(turn.message || say("stopped"));
  } finally {
    if (running === own) running = null;
    await store(mine);
    redraw(turn);
    head();
    if (conversation === mine && turn.answer) toTop(nodes.get(turn));
  }
}

function stop() {
  if (running) running.controller.abort();
  running = null;
}

// scrollIntoView would also scroll the elements around the thread.
function toTop(node) {
  $("thread").scrollTop = node.offsetTop - 8;
}

// The question grows with its content, is kept for a reload, and says when it is too long.
function typed() {
  const field = $("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
  sessionStorage.setItem("draft", field.value);
  const length = points(field.value.trim()).length;
  $("limit").textContent = length > LONGEST_QUESTION
    ? say("tooLong", length.toLocaleString(), LONGEST_QUESTION.toLocaleString()) : "";
  $("limit").hidden = length <= LONGEST_QUESTION;
  return length <= LONGEST_QUESTION;
}

export function askNow(question) {
  if (!running && base) submit(question);
}

function prepareMenu() {
  const dialog = $("rename");
  $("rename-conversation").onclick = () => {
    $("conversation-menu").hidePopover();
    $("rename-field").value = nameOf(conversation);
    dialog.showModal();
    $("rename-field").select();
  };
  $("rename-cancel").onclick = () => dialog.close();
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    conversation.title = $("rename-field").value.trim();
    dialog.close();
    await store(conversation);
    head();
    await drawConversations();
  });
  const item = (id, run) => {
    $(id).onclick = () => {
      $("conversation-menu").hidePopover();
      run();
    };
  };
  const file = (end) => `${nameOf(conversation).replace(/[\\/:*?"<>|\s]+/g, " ").trim().slice(0, 60)}.${end}`;
  item("delete-conversation", () => remove(conversation));
  item("export-markdown", () => save(asMarkdown(conversation), file("md")));
  item("export-word", () => save(asWord(conversation), file("docx")));
  item("link-conversation", () => copy(wholeLink({ conversation: conversation.id, answer: null })));
}

export function prepareChat(welcomeNodes, note) {
  welcome = welcomeNodes;
  refusalNote = note;
  const field = $("question");
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = field.value.trim();
    if (!typed() || !question || running || !base) return;
    field.value = "";
    typed();
    submit(question);
  });
  field.value = sessionStorage.getItem("draft") || "";
  typed();
  field.addEventListener("input", typed);
  field.addEventListener("keydown", (event) => {
    // Enter that ends a word of an input method does not send the question.
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
    event.preventDefault();
    $("ask").requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest("input, textarea, select, dialog:modal");
    if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    field.focus();
  });
  onStoredElsewhere(async (id) => {
    if (!running && conversation && conversation.id === id) {
      conversation = await load(id) || newConversation();
      show();
    }
    await drawConversations();
  });
  addEventListener("pagehide", () => running && store(conversation));
  $("stop").onclick = () => {
    if (running) running.controller.abort();
    field.focus();
  };
  $("clear").onclick = async () => {
    await openConversation("");
    field.focus();
  };
  prepareMenu();
}
