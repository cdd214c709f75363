// The conversations, in this browser's database: they outlive the tab. Each belongs to a knowledge
// base and to the key that was used, so that a log-out hides them.

import { $, button, make, notice } from "./dom.js";
import { say, when } from "./messages.js";

const LIMIT = 500; // conversations that are kept
const tabs = new BroadcastChannel("conversations"); // the other tabs, which show the same conversations
let opened = null;
let owner = "";
let base = "";
let current = "";
let openIt = () => {};

function database() {
  opened ||= new Promise((resolve, reject) => {
    const request = indexedDB.open("chatglm-rag", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("conversations", { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

// Runs one request; resolves to its result, or to `without` if this browser stores nothing.
async function run(mode, request, without = undefined) {
  try {
    const store = (await database()).transaction("conversations", mode).objectStore("conversations");
    const asked = request(store);
    return await new Promise((resolve, reject) => {
      asked.onsuccess = () => resolve(asked.result);
      asked.onerror = () => reject(asked.error);
    });
  } catch (error) {
    if (!(error instanceof DOMException)) throw error;
    if (mode === "readwrite") notice(say("notStored"), { problem: true });
    return without;
  }
}

const mine = (each) => each && each.owner === owner && each.base === base;

export const newConversation = () =>
  ({ id: crypto.getRandomValues(new Uint32Array(3)).reduce((text, n) => text + n.toString(36), ""),
    base, owner, title: "", turns: [], changed: Date.now() });

export async function load(id) {
  const found = id && await run("readonly", (store) => store.get(id));
  return mine(found) ? found : null;
}

async function all() {
  const found = await run("readonly", (store) => store.getAll(), []);
  return found.filter(mine).sort((a, b) => b.changed - a.changed);
}

// `unfinished`: it is being answered, so that the other tabs need not show it yet.
export async function store(conversation, { unfinished = false } = {}) {
  await run("readwrite", (store) => store.put(conversation));
  if (!unfinished) tabs.postMessage(conversation.id);
}

// `act` gets the id of a conversation that another tab has stored or deleted.
export function onStoredElsewhere(act) {
  tabs.onmessage = (event) => act(event.data);
}

export const nameOf = (conversation) => conversation.title
  || (conversation.turns[0] ? conversation.turns[0].question : say("clear"));

export async function remove(conversation) {
  await run("readwrite", (store) => store.delete(conversation.id));
  tabs.postMessage(conversation.id);
  if (conversation.id === current) openIt("");
  await drawConversations();
  notice(say("removed", nameOf(conversation).slice(0, 60)), {
    action: say("undo"),
    run: async () => { await store(conversation); openIt(conversation.id); },
  });
}

export async function removeAllOf(name) {
  for (const each of await run("readonly", (store) => store.getAll(), [])) {
    if (each.base === name && each.owner === owner) await run("readwrite", (store) => store.delete(each.id));
  }
}

export async function drawConversations(chosen = current) {
  current = chosen;
  const words = $("find-conversation").value.trim().toLowerCase();
  const listed = await all();
  for (const old of listed.splice(LIMIT)) await run("readwrite", (store) => store.delete(old.id));
  const found = listed.filter((each) => !words || [each.title, ...each.turns.map(
    (turn) => `${turn.question} ${turn.answer ? turn.answer.answer : turn.text}`)].join(" ").toLowerCase().includes(words));
  $("conversation-list").replaceChildren(...found.map((each) => make("li", { class: "document" },
    make("button", {
      type: "button", class: "name", "aria-current": each.id === current ? "true" : null,
      onclick: () => openIt(each.id),
    }, nameOf(each)),
    button("×", () => remove(each), { class: "quiet delete", "aria-label": say("remove", nameOf(each)) }),
    make("span", { class: "receipt" }, when(each.changed / 1000)))));
  if (!found.length) {
    $("conversation-list").append(make("li", { class: "soft" }, say(words ? "noConversation" : "noConversations")));
  }
}

export function useConversations(name, key) {
  base = name;
  owner = key;
}

export function prepareConversations(open) {
  openIt = open;
  $("find-conversation").addEventListener("input", () => drawConversations());
}
