// The whole page: session, knowledge base, view, appearance, and what no one else caught.

import { address, go, NO_SOURCE } from "./address.js";
import { get, Problem, send, useKey } from "./api.js";
import { askNow, askOnly, isEmpty, openConversation, prepareChat, show, useBase } from "./chat.js";
import { drawConversations, prepareConversations, removeAllOf, useConversations } from "./conversations.js";
import { count, list, prepareDocuments, useDocuments } from "./documents.js";
import { $, button, make, notice, reason, sure, tell } from "./dom.js";
import { prepareJobs, reading, useJobs } from "./jobs.js";
import { choose, language, say, translatePage } from "./messages.js";
import { closeSource, followAddress, prepareSource, refreshSource } from "./source.js";

const NAME = /^[\p{L}\p{N}_-]{1,64}$/u;
const THEMES = ["auto", "light", "dark"];
// Questions for the documents of the demo, shown where these documents are.
const EXAMPLES = [
  { document: "劳动合同法.md", questions: [["How long may a probation period be at most?", "试用期最长不得超过几个月？"],
    ["How many days in advance must an employee give notice?", "劳动者辞职要提前多少天通知单位？"],
    ["What does driving through a red light cost in penalty points?", "闯红灯记几分？"]] },
  { document: "ch04-01-what-is-ownership.md", questions: [["What are the rules of ownership?", "所有权有哪些规则？"],
    ["How is an integer overflow handled?", "整数溢出会怎样处理？"],
    ["What is the difference between String and &str?", "String 和 &str 有什么区别？"]] },
];
const narrow = matchMedia("(max-width: 54rem)");
let session = null;
let bases = [];
let examples = [];
let basesProblem = "";
let starting = false; // the server still reads the documents of its demonstration

const admin = () => Boolean(session) && session.scopes.includes("admin");
const chosenBase = () => bases.find((each) => each.name === $("base").value);

async function begin() {
  try {
    session = await get("/session");
    if ($("key").open) $("key").close();
    $("new-base").hidden = !admin();
    $("log-out").hidden = !session.key;
    await loadBases();
  } catch (error) {
    if (error instanceof Problem && error.status === 401) return askKey("");
    basesProblem = reason(error);
    show();
  }
  return undefined;
}

function askKey(problem) {
  $("key-problem").textContent = problem;
  if (!$("key").open) $("key").showModal();
  $("key-field").focus();
}

async function loadBases(wanted = address().base || localStorage.getItem("base")) {
  basesProblem = "";
  bases = (await get("/knowledge-bases")).knowledge_bases;
  $("base").replaceChildren(...bases.map((base) => make("option", { value: base.name }, base.name)));
  $("base").parentElement.hidden = !bases.length;
  const found = bases.find((base) => base.name === wanted) || bases[0];
  if (found) $("base").value = found.name;
  await chooseBase();
}

async function chooseBase() {
  const base = chosenBase();
  $("base").title = base ? base.name : "";
  $("delete-base").hidden = !base || !base.scopes.includes("admin");
  if (base) localStorage.setItem("base", base.name);
  const usable = base && !base.problem ? base.name : "";
  const writable = mayWrite();
  if (address().base !== usable) go({ base: usable, conversation: null, answer: null, ...(address().base ? NO_SOURCE : {}) });
  useConversations(usable, session.key || "");
  examples = [];
  await useBase(usable);
  followAddress(usable);
  await Promise.all([useDocuments(usable, writable), startJobs(usable, writable)]);
  await findExamples(usable);
  if (isEmpty()) show();
  if (usable && !count()) untilReady(usable);
}

// A knowledge base without documents may get some while the server starts.
async function untilReady(usable) {
  while ((await fetch("/readyz").catch(() => ({}))).status === 503) {
    if (!starting) {
      starting = true;
      if (isEmpty()) show();
    }
    await new Promise((done) => setTimeout(done, 2000));
    if ($("base").value !== usable) return;
  }
  if (!starting) return;
  starting = false;
  await useDocuments(usable, mayWrite());
  await findExamples(usable);
  if (isEmpty()) show();
}

// Whether files can be added here; on a server without a knowledge base they make the first one.
function mayWrite() {
  const base = chosenBase();
  return base ? !base.problem && base.scopes.includes("write") : admin();
}

async function startJobs(usable, writable) {
  try {
    await useJobs(usable, session, writable);
  } catch (error) {
    notice(reason(error), { action: say("again"), run: () => startJobs(usable, writable), problem: true });
  }
}

async function findExamples(usable) {
  for (const example of usable && count() ? EXAMPLES : []) {
    const { documents } = await get(`/knowledge-bases/${encodeURIComponent(usable)}/documents?limit=1&${
      new URLSearchParams({ q: example.document })}`);
    if (documents.some((each) => each.name === example.document)) examples = example.questions;
  }
}

// What an empty conversation shows: the next step.
function welcome() {
  const base = chosenBase();
  const box = (...children) => [make("div", { class: "welcome" }, ...children)];
  if (basesProblem) return box(make("p", { class: "problem", role: "alert" }, basesProblem), primary(say("again"), begin));
  if (!session) return [];
  if (!base) {
    return admin() ? box(make("p", {}, say("noBase")), primary(say("upload"), () => $("files").click())) : box(say("noBaseRead"));
  }
  if (base.problem) return box(make("p", { class: "problem" }, base.problem));
  if (!count() && starting) return box(make("p", {}, say("starting")));
  if (!count() && !reading().length) {
    return mayWrite()
      ? box(make("p", {}, say("welcomeEmpty")), primary(say("upload"), () => $("files").click()))
      : box(say("welcomeEmptyRead"));
  }
  return box(make("p", {}, say("welcome")), ...(examples.length ? [make("h3", {}, say("examples"))] : []),
    ...examples.map((both) => {
      const question = both[language() === "zh" ? 1 : 0];
      return button(question, () => askNow(question), { class: "quiet example" });
    }));
}

const primary = (text, run) => button(text, run, { class: "" });

// Why a refusal may change soon: nothing is there yet, or not all of it.
function refusalNote() {
  const jobs = reading();
  if (jobs.length) {
    const sum = (name) => jobs.reduce((total, job) => total + job[name], 0);
    return say("stillReading", sum("files_done"), sum("files_total"));
  }
  if (count()) return "";
  return say(starting ? "starting" : "emptyBase");
}

async function onDocuments() {
  const before = count();
  await list();
  if (isEmpty() && Boolean(before) !== Boolean(count())) show();
}

function view(name) {
  document.body.dataset.view = name;
  // The desk has the conversation always, and one of the lists beside it.
  if (name !== "chat") document.body.dataset.list = name;
  const pressed = narrow.matches ? name : document.body.dataset.list;
  // A phone shows one of the three: it is the main part then.
  for (const each of ["conversations", "documents"]) {
    $(each).setAttribute("role", narrow.matches && each === name ? "main" : "complementary");
  }
  for (const each of ["chat", "conversations", "documents"]) {
    $(`show-${each}`).setAttribute("aria-pressed", String(each === pressed));
  }
}

// Knowledge bases

function openBaseForm() {
  const options = (select, names, none) => {
    $(select).replaceChildren(...(none ? [make("option", { value: "" }, say("none"))] : []),
      ...names.map((name) => make("option", { value: name }, name)));
  };
  $("menu").hidePopover();
  options("base-embedder", session.embedders, false);
  options("base-adapter", session.adapters, true);
  $("embedder-row").hidden = session.embedders.length < 2;
  $("adapter-row").hidden = !session.adapters.length;
  $("base-problem").textContent = "";
  $("base-form").showModal();
  $("base-name").focus();
}

async function createBase(event) {
  event.preventDefault();
  const wanted = {
    name: $("base-name").value.trim(), embedder: $("base-embedder").value,
    adapter: $("base-adapter").value, instruction: $("base-instruction").value.trim(),
  };
  if (!NAME.test(wanted.name)) {
    $("base-problem").textContent = wanted.name ? say("nameWrong", wanted.name) : say("nameMissing");
    $("base-name").focus();
    return;
  }
  const pending = $("base-create");
  pending.disabled = true;
  pending.textContent = say("creating");
  $("base-problem").textContent = "";
  try {
    await send("POST", "/knowledge-bases", wanted);
  } catch (error) {
    $("base-problem").textContent = reason(error);
    return;
  } finally {
    pending.disabled = false;
    pending.textContent = say("create");
  }
  $("base-form").close();
  $("base-form").querySelector("form").reset();
  await loadBases(wanted.name);
}

// The knowledge base of a server that has none yet, for the first files that are added.
async function createFirstBase() {
  const name = say("firstBase");
  await send("POST", "/knowledge-bases", { name });
  await loadBases(name);
}

async function deleteBase() {
  const name = $("base").value;
  $("menu").hidePopover();
  if (!(await sure(say("surelyBase", name)))) return;
  try {
    await send("DELETE", `/knowledge-bases/${encodeURIComponent(name)}`);
    await removeAllOf(name);
    notice(say("removed", name));
    tell(say("removed", name));
    go({ base: null, conversation: null, answer: null, ...NO_SOURCE });
    await loadBases();
  } catch (error) {
    notice(reason(error), { action: say("again"), run: deleteBase, problem: true });
  }
}

function prepareBases() {
  $("base").addEventListener("change", () => {
    closeSource();
    go({ base: $("base").value, conversation: null, answer: null, ...NO_SOURCE });
    chooseBase();
  });
  $("new-base").onclick = openBaseForm;
  $("base-cancel").onclick = () => $("base-form").close();
  $("base-form").querySelector("form").addEventListener("submit", createBase);
  $("delete-base").onclick = deleteBase;
}

function prepareKey() {
  $("key").addEventListener("cancel", (event) => event.preventDefault());
  $("key").querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const key = $("key-field").value.trim();
    if (!/^[\x21-\x7e]*$/.test(key)) return askKey(say("wrongKey")); // a header can't contain it
    useKey(key);
    try {
      await get("/session");
    } catch (error) {
      return askKey(error instanceof Problem && error.status === 401 ? say("wrongKey") : reason(error));
    }
    $("key-field").value = "";
    return begin();
  });
  $("log-out").onclick = () => {
    useKey("");
    sessionStorage.removeItem("draft");
    location.replace(location.pathname);
    if (location.hash) location.reload();
  };
}

// Appearance and language

function showTheme() {
  const theme = localStorage.getItem("theme") || "auto";
  document.documentElement.dataset.theme = theme;
  $("theme").textContent = say("theme", say(`theme${theme}`));
}

function prepareAppearance() {
  showTheme();
  $("theme").onclick = () => {
    const now = THEMES.indexOf(localStorage.getItem("theme") || "auto");
    const next = THEMES[(now + 1) % THEMES.length];
    if (next === "auto") localStorage.removeItem("theme");
    else localStorage.setItem("theme", next);
    showTheme();
  };
  $("language").onclick = async () => {
    choose(language() === "zh" ? "en" : "zh");
    showTheme();
    show();
    refreshSource();
    if (!session) return;
    const usable = chosenBase() && !chosenBase().problem ? chosenBase().name : "";
    await Promise.all([list(), startJobs(usable, mayWrite()), drawConversations()]);
  };
}

// One handler for what no one caught, so that nothing fails in silence.
function uncaught(error) {
  if (error instanceof Problem && error.status === 401) return askKey("");
  let text;
  try {
    text = reason(error);
  } catch {
    text = say("unexpected", error && error.message ? error.message : String(error));
  }
  return notice(text, { problem: true });
}

addEventListener("error", (event) => event.message && !/ResizeObserver/.test(event.message) && uncaught(event.error || event));
addEventListener("unhandledrejection", (event) => uncaught(event.reason));
addEventListener("popstate", async () => {
  const wanted = address();
  if (!session) return;
  if (wanted.base && wanted.base !== $("base").value && bases.some((base) => base.name === wanted.base)) {
    $("base").value = wanted.base;
    await chooseBase();
    return;
  }
  followAddress($("base").value);
});
addEventListener("hashchange", (event) => {
  const before = new URLSearchParams(new URL(event.oldURL).hash.slice(1)).get("conversation") || "";
  const { conversation, answer } = address();
  if (session && conversation && conversation !== before) openConversation(conversation, { answer });
});

translatePage();
prepareChat(welcome, refusalNote);
prepareConversations((id) => {
  openConversation(id);
  if (id && narrow.matches) view("chat");
});
prepareDocuments((names) => {
  if (narrow.matches) view("chat");  // before the question gets the focus, which nothing hidden can have
  askOnly(names);
});
prepareJobs(onDocuments, createFirstBase);
prepareSource();
prepareBases();
prepareKey();
prepareAppearance();
view("chat");
narrow.addEventListener("change", () => view(document.body.dataset.view));
for (const each of ["chat", "conversations", "documents"]) $(`show-${each}`).onclick = () => view(each);
begin();
