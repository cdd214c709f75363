// A conversation with its sources as plain text, as Markdown and as a Word document.

import { whereOf } from "./answer.js";
import { nameOf } from "./conversations.js";
import { say } from "./messages.js";

const one = (text) => text.replace(/\s+/g, " ").trim();

// An answer with its sources, as it is copied.
export function answerText(answer) {
  const lines = answer.citations.map((each) => `[${each.number}] ${whereOf(each)}: “${one(each.quote)}”`);
  return lines.length ? `${answer.answer}\n\n${say("sources")}\n${lines.join("\n")}` : answer.answer;
}

// Signs that Markdown would read as its own stay what they are.
const plain = (text) => text.replace(/[\\`*_{}<>#|]/g, "\\$&").replace(/^(\s*)([-+]|\d+\.)(?=\s)/gm, "$1\\$2");

export function asMarkdown(conversation) {
  const parts = [`# ${plain(nameOf(conversation))}`];
  for (const turn of conversation.turns) {
    parts.push(`## ${plain(one(turn.question))}`);
    parts.push(plain(turn.answer ? turn.answer.answer : turn.text || say("unanswered")));
    const citations = turn.answer ? turn.answer.citations : [];
    if (citations.length) {
      parts.push(`**${say("sources")}**`, citations.map(
        (each) => `- \\[${each.number}\\] ${plain(whereOf(each))}\n  > ${plain(one(each.quote))}`).join("\n"));
    }
  }
  return new Blob([`${parts.join("\n\n")}\n`], { type: "text/markdown" });
}

const WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main";
const RELATIONS = "http://schemas.openxmlformats.org/package/2006/relationships";
const OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument";
const TYPES = "http://schemas.openxmlformats.org/package/2006/content-types";
const MAIN = "application/vnd.openxmlformats-officedocument.wordprocessingml.document";
const HEAD = '<?xml version="1.0" encoding="UTF-8" standalone="yes"?>\n';

const escaped = (text) => text.replace(/[^\t\n\r\x20-\ud7ff\ue000-\ufffd\u{10000}-\u{10ffff}]/gu, "")
  .replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

function paragraph(text, { size = 22, bold = false, soft = false } = {}) {
  const looks = `<w:rPr>${bold ? "<w:b/>" : ""}${soft ? '<w:color w:val="555555"/>' : ""}<w:sz w:val="${size}"/></w:rPr>`;
  const level = size >= 32 ? 0 : bold && size >= 26 ? 1 : -1;
  const outline = level < 0 ? "" : `<w:outlineLvl w:val="${level}"/>`;
  const lines = escaped(text).split("\n").map((line) => `<w:t xml:space="preserve">${line}</w:t>`).join("<w:br/>");
  return `<w:p><w:pPr><w:spacing w:after="120"/>${outline}</w:pPr><w:r>${looks}${lines}</w:r></w:p>`;
}

export function asWord(conversation) {
  const parts = [paragraph(nameOf(conversation), { size: 32, bold: true })];
  for (const turn of conversation.turns) {
    parts.push(paragraph(turn.question, { size: 26, bold: true }));
    parts.push(paragraph(turn.answer ? turn.answer.answer : turn.text || say("unanswered")));
    for (const each of turn.answer ? turn.answer.citations : []) {
      parts.push(paragraph(`[${each.number}] ${whereOf(each)}: “${one(each.quote)}”`, { size: 20, soft: true }));
    }
  }
  const file = zip({
    "[Content_Types].xml": `${HEAD}<Types xmlns="${TYPES}"><Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/word/document.xml" ContentType="${MAIN}.main+xml"/></Types>`,
    "_rels/.rels": `${HEAD}<Relationships xmlns="${RELATIONS}"><Relationship Id="rId1" Type="${OFFICE}" Target="word/document.xml"/></Relationships>`,
    "word/document.xml": `${HEAD}<w:document xmlns:w="${WORD}"><w:body>${parts.join("")}</w:body></w:document>`,
  });
  return new Blob(file, { type: MAIN });
}

// A ZIP archive whose files are stored as they are, which is all that Word needs.
function zip(files) {
  const encode = (text) => new TextEncoder().encode(text);
  const body = [];
  const list = [];
  let at = 0;
  for (const [name, text] of Object.entries(files)) {
    const [path, data] = [encode(name), encode(text)];
    const about = numbers([20, 2], [0x0800, 2], [0, 2], [0, 2], [0x21, 2], [crc32(data), 4], [data.length, 4],
      [data.length, 4], [path.length, 2], [0, 2]);
    const local = [numbers([0x04034b50, 4]), about, path, data];
    list.push(numbers([0x02014b50, 4], [20, 2]), about, numbers([0, 2], [0, 2], [0, 2], [0, 4], [at, 4]), path);
    body.push(...local);
    at += local.reduce((sum, part) => sum + part.length, 0);
  }
  const size = list.reduce((sum, part) => sum + part.length, 0);
  const count = Object.keys(files).length;
  return [...body, ...list, numbers([0x06054b50, 4], [0, 4], [count, 2], [count, 2], [size, 4], [at, 4], [0, 2])];
}

// Numbers as bytes, the lowest first.
function numbers(...pairs) {
  return Uint8Array.from(pairs.flatMap(([value, width]) =>
    Array.from({ length: width }, (_, index) => (value >>> (8 * index)) & 0xff)));
}

function crc32(data) {
  let sum = ~0;
  for (const byte of data) {
    sum ^= byte;
    for (let bit = 0; bit < 8; bit += 1) sum = (sum >>> 1) ^ (0xedb88320 & -(sum & 1));
  }
  return ~sum >>> 0;
}
