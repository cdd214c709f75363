// The server: requests with key and language, streamed answers, uploads with progress.

import { language } from "./messages.js";

export class Problem extends Error {
  constructor(status, message, after) {
    super(message);
    this.status = status;
    this.after = after;
  }
}

let key = sessionStorage.getItem("key") || "";

export function useKey(value) {
  key = value;
  sessionStorage.setItem("key", value);
}

function headers(more = {}) {
  const all = { "Accept-Language": language(), ...more };
  if (key) all.Authorization = `Bearer ${key}`;
  return all;
}

async function problem(response) {
  let message = `${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // A proxy's response, which may have any form.
  }
  return new Problem(response.status, message, response.headers.get("retry-after"));
}

export async function get(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await problem(response);
  return response.json();
}

export async function send(method, path, body) {
  const response = await fetch(path, {
    method,
    headers: headers(body === undefined ? {} : { "Content-Type": "application/json" }),
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  if (!response.ok) throw await problem(response);
  return response.status === 204 ? null : response.json();
}

// A picture's address for <img>, the number of pages, and the part of its height above the mark,
// null if the passage is not marked on it.
export async function picture(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await problem(response);
  const top = response.headers.get("x-mark-top");
  return {
    address: URL.createObjectURL(await response.blob()), pages: Number(response.headers.get("x-pages")),
    top: top === null ? null : Number(top),
  };
}

export async function bytes(path) {
  const response = await fetch(path, { headers: headers() });
  if (!response.ok) throw await problem(response);
  return response.blob();
}

// Yields [event, data] as they arrive. Half a character waits for its other half.
export async function* ask(body, signal) {
  const response = await fetch("/ask", {
    method: "POST",
    headers: headers({ "Content-Type": "application/json", Accept: "text/event-stream" }),
    body: JSON.stringify({ ...body, stream: true }),
    signal,
  });
  if (!response.ok) throw await problem(response);
  const reader = response.body.getReader();
  const decoder = new TextDecoder();
  let buffer = "";
  for (;;) {
    const { done, value } = await reader.read();
    buffer += decoder.decode(value, { stream: !done });
    let end;
    while ((end = buffer.indexOf("\n\n")) >= 0) {
      const block = buffer.slice(0, end);
      buffer = buffer.slice(end + 2);
      const fields = Object.fromEntries(block.split("\n").map((line) => {
        const at = line.indexOf(":");
        return [line.slice(0, at), line.slice(at + 1).trimStart()];
      }));
      if (fields.data) yield [fields.event, JSON.parse(fields.data)];
    }
    if (done) return;
  }
}

// `files` are { file, name }. Resolves to the job. `progress` gets the share sent, 0 to 1, which fetch does not report.
export function upload(base, files, progress) {
  const form = new FormData();
  for (const { file, name } of files) form.append("files", file, name);
  const request = new XMLHttpRequest();
  request.open("POST", `/knowledge-bases/${encodeURIComponent(base)}/documents`);
  for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
  request.upload.onprogress = (event) => progress(event.loaded / Math.max(1, event.total));
  return new Promise((resolve, reject) => {
    request.onerror = () => reject(new Problem(0, "", null));
    request.onload = () => {
      let body = {};
      try {
        body = JSON.parse(request.responseText);
      } catch {
        // A proxy's response again.
      }
      if (request.status === 202) resolve(body);
      else {
        const message = body.error ? body.error.message : `${request.status}`;
        reject(new Problem(request.status, message, request.getResponseHeader("retry-after")));
      }
    };
    request.send(form);
  });
}
