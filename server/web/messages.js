// The page's messages in both languages, and the language that the reader has chosen.

const MESSAGES = {
  skip: ["Skip to the question", "跳到提问框"],
  views: ["Views", "视图"],
  base: ["Knowledge base", "知识库"],
  newBase: ["New knowledge base", "新建知识库"],
  deleteBase: ["Delete knowledge base", "删除知识库"],
  chat: ["Questions", "提问"],
  documents: ["Documents", "文档"],
  upload: ["Add documents", "添加文档"],
  drop: ["or drop them anywhere", "或拖放到页面任意处"],
  dropHere: ["Drop to add them to this knowledge base", "松开即添加到当前知识库"],
  find: ["Find a document", "查找文档"],
  more: ["Show more", "显示更多"],
  clear: ["New conversation", "新对话"],
  question: ["Your question", "你的问题"],
  placeholder: ["Ask about your documents", "就你的文档提问"],
  ask: ["Ask", "提问"],
  stop: ["Stop", "停止"],
  close: ["Close", "关闭"],
  cancel: ["Cancel", "取消"],
  delete: ["Delete", "删除"],
  keyTitle: ["This server needs a key", "本服务需要密钥"],
  key: ["Key", "密钥"],
  wrongKey: ["This key is not known, or was revoked.", "密钥无效或已吊销。"],
  enter: ["Enter", "进入"],
  name: ["Name", "名称"],
  embedder: ["Encoder", "编码器"],
  adapter: ["Adapter", "适配器"],
  none: ["none", "无"],
  instruction: ["Instruction for the language model (optional)", "给语言模型的指令（可选）"],
  create: ["Create", "创建"],
  language: ["中文", "English"],
  noBase: ["There is no knowledge base yet. Create one to begin.", "还没有知识库。请先新建一个。"],
  noBaseRead: ["There is no knowledge base that this key may read.", "此密钥没有可读的知识库。"],
  noDocuments: ["No documents yet. Add some, then ask.", "还没有文档。请先添加，再提问。"],
  nothingFound: ["No document matches.", "没有匹配的文档。"],
  welcome: ["Ask in any language. Answers quote their sources. If the documents do not answer a question, the page says so.",
    "可用任何语言提问。回答均附原文出处；文档中没有的内容会如实说明。"],
  you: ["You", "你"],
  answer: ["Answer", "回答"],
  searching: ["Searching…", "正在检索…"],
  writing: ["Writing…", "正在回答…"],
  notFound: ["Not found", "未找到"],
  searched: ["Nearest passages", "检索到的最接近段落"],
  sources: ["Sources", "出处"],
  openSource: ["Source {0}: {1}", "出处 {0}：{1}"],
  unsupported: ["not supported by the passages", "段落中无依据"],
  stopped: ["Stopped.", "已停止。"],
  brokenOff: ["The connection was interrupted.", "连接中断。"],
  again: ["Try again", "重试"],
  later: ["The server is busy. Try again in {0} s.", "繁忙，请 {0} 秒后再试。"],
  before: ["Text before", "前文"],
  after: ["Text after", "后文"],
  page: ["Page {0}", "第 {0} 页"],
  pageMarked: ["Picture of page {0}, with the quote marked", "第 {0} 页的图像，引文已标出"],
  pagePlain: ["Picture of page {0}", "第 {0} 页的图像"],
  open: ["Open {0}", "打开 {0}"],
  remove: ["Delete {0}", "删除 {0}"],
  surely: ["Delete “{0}”? It can no longer be found.", "删除“{0}”？删除后将无法再检索到。"],
  surelyBase: ["Delete the knowledge base “{0}” with all its documents?", "删除知识库“{0}”及其全部文档？"],
  removed: ["{0} was deleted.", "已删除 {0}。"],
  characters: ["{0} characters", "{0} 字"],
  replaced: ["{0} bytes could not be decoded", "{0} 字节无法解码"],
  ocr: ["{0} pages read by OCR", "{0} 页经文字识别"],
  uploading: ["Uploading {0}%", "正在上传 {0}%"],
  queued: ["Waiting", "排队中"],
  running: ["Reading: {0} of {1} files, {2} chunks embedded", "正在读取：{0}/{1} 个文件，已向量化 {2} 块"],
  done: ["Done: {0} files", "完成：{0} 个文件"],
  failed: ["Failed: {0}", "失败：{0}"],
  cancelled: ["Cancelled", "已取消"],
  cancelJob: ["Cancel this upload", "取消此次上传"],
  dismiss: ["Hide", "隐藏"],
  waiting: ["waiting", "等待"], added: ["added", "已添加"], changed: ["replaced", "已更新"],
  unchanged: ["unchanged", "未变"], refused: ["refused", "被拒"], cancelledFile: ["cancelled", "已取消"],
  tooMany: ["{0} files are too many at once; the limit is {1}.", "一次 {0} 个文件过多；上限为 {1}。"],
  tooLarge: ["{0} is larger than {1} MB, the limit of this server.", "{0} 超过本服务器上限 {1} MB。"],
  trace: ["rag trace {0}", "rag trace {0}"],
};

let chosen = localStorage.getItem("language")
  || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

export function language() {
  return chosen;
}

export function say(name, ...parts) {
  const text = MESSAGES[name][chosen === "zh" ? 1 : 0];
  return text.replace(/\{(\d)\}/g, (_, index) => String(parts[Number(index)]));
}

export function choose(language) {
  chosen = language;
  localStorage.setItem("language", language);
  translatePage();
}

// Writes the messages into all elements that name one in data-say.
export function translatePage() {
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", say(node.dataset.label));
  }
  document.getElementById("question").placeholder = say("placeholder");
  document.getElementById("find").placeholder = say("find");
  const other = document.getElementById("language");
  other.textContent = say("language");
  other.lang = chosen === "zh" ? "en" : "zh-CN";
}
