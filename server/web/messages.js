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
  askOnly: ["Ask only these", "只问这些"],
  onlyIn: ["Only in", "仅限"],
  unscope: ["No longer limit to {0}", "不再限定于 {0}"],
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
  noBase: ["There are no documents yet. Add some, then ask.", "还没有文档。请先添加，再提问。"],
  firstBase: ["documents", "我的文档"],
  welcomeEmpty: ["This knowledge base has no documents yet. Add some, then ask.", "此知识库还没有文档。请先添加，再提问。"],
  welcomeEmptyRead: ["This knowledge base has no documents yet.", "此知识库还没有文档。"],
  noBaseRead: ["There is no knowledge base that this key may read.", "此密钥没有可读的知识库。"],
  noDocuments: ["No documents yet.", "还没有文档。"],
  nothingFound: ["No document matches.", "没有匹配的文档。"],
  welcome: ["Ask in any language. Answers quote their sources. If the documents do not answer a question, the page says so.",
    "可用任何语言提问。回答均附原文出处；文档中没有的内容会如实说明。"],
  you: ["You", "你"],
  answer: ["Answer", "回答"],
  searching: ["Searching…", "正在检索…"],
  writing: ["Writing…", "正在回答…"],
  readingPassages: ["Reading the passages: {0} %", "正在阅读段落：{0}%"],
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
  removed: ["“{0}” was deleted.", "已删除“{0}”。"],
  removedMany: ["{0} documents were deleted.", "已删除 {0} 个文档。"],
  characters: ["{0} characters", "{0} 字"],
  replaced: ["{0} bytes could not be decoded", "{0} 字节无法解码"],
  ocr: ["{0} pages read by OCR", "{0} 页经文字识别"],
  uploading: ["Uploading {0}%", "正在上传 {0}%"],
  queued: ["Waiting", "排队中"],
  running: ["Reading: {0} of {1} files, {2} chunks embedded", "正在读取：{0}/{1} 个文件，已向量化 {2} 块"],
  failed: ["Failed: {0}", "失败：{0}"],
  cancelled: ["Cancelled", "已取消"],
  cancelJob: ["Cancel this upload", "取消此次上传"],
  dismiss: ["Hide", "隐藏"],
  waiting: ["waiting", "等待"], added: ["added", "已添加"], changed: ["replaced", "已更新"],
  unchanged: ["unchanged", "未变"], refused: ["refused", "被拒"], cancelledFile: ["cancelled", "已取消"],
  tooMany: ["{0} files are too many at once; the limit is {1}.", "一次 {0} 个文件过多；上限为 {1}。"],
  tooLarge: ["{0} is larger than {1} MB, the limit of this server.", "{0} 超过本服务器上限 {1} MB。"],
  leftOut: ["{0} files of other formats were left out.", "已略过 {0} 个无法读取格式的文件。"],
  comma: [", ", "，"],
  count_added: ["{0} added", "{0} 个已添加"], count_changed: ["{0} replaced", "{0} 个已更新"],
  count_unchanged: ["{0} unchanged", "{0} 个未变"], count_refused: ["{0} refused", "{0} 个被拒"],
  count_cancelled: ["{0} cancelled", "{0} 个已取消"], count_waiting: ["{0} waiting", "{0} 个等待中"],
  waitingForServer: ["Waiting for the server.", "正在等待服务器恢复。"],
  addFolder: ["Add a folder", "添加文件夹"],
  pasteText: ["Paste text", "粘贴文本"],
  pasteName: ["Name (optional)", "名称（可选）"],
  pasteField: ["Text", "文本"],
  pasteEmpty: ["There is no text yet.", "还没有文本。"],
  add: ["Add", "添加"],
  sort: ["Sort", "排序"], sortName: ["Name", "按名称"], sortAdded: ["Newest", "按时间"], sortSize: ["Largest", "按大小"],
  choose: ["Choose {0}", "选择 {0}"],
  chosenCount: ["{0} documents", "{0} 个文档"],
  reread: ["Read again", "重新读取"], chooseNone: ["Choose none", "取消选择"],
  notReread: ["{0} documents were read from a folder and can't be read again here.", "{0} 个文档来自文件夹，无法在此重新读取。"],
  surelyMany: ["Delete {0} documents? They can no longer be found.", "删除 {0} 个文档？删除后将无法再检索到。"],
  stateRead: ["read", "已读取"], stateLosses: ["read with remarks", "已读取，有提示"], stateReading: ["being read", "读取中"],
  readAs: ["decoded as {0}", "按{0}解码"],
  conversations: ["Conversations", "对话"],
  findConversation: ["Search in conversations", "搜索对话"],
  noConversations: ["Conversations are kept in this browser.", "对话保存在此浏览器中。"],
  noConversation: ["No conversation matches.", "没有匹配的对话。"],
  noSuchConversation: ["This browser has no such conversation: links to conversations work where they were held.",
    "此浏览器中没有这个对话：对话链接只在进行对话的浏览器中有效。"],
  notStored: ["This browser stores nothing for this page. The conversation is lost when the page is closed.",
    "此浏览器不为本页面保存数据，关闭页面后对话将丢失。"],
  conversationMenu: ["This conversation", "当前对话"],
  rename: ["Rename", "重命名"], save: ["Save", "保存"],
  exportMarkdown: ["Save as Markdown", "导出为 Markdown"], exportWord: ["Save as Word document", "导出为 Word 文档"],
  link: ["Copy link", "复制链接"], linkAnswer: ["Copy link", "复制链接"],
  undo: ["Undo", "撤销"], copy: ["Copy", "复制"], copied: ["Copied.", "已复制。"],
  edit: ["Edit and ask again", "修改后再问"],
  unanswered: ["(no answer)", "（未回答）"],
  tooLong: ["{0} characters; a question may have {1}. Shorten it, or add the text as a document.",
    "共 {0} 字，问题最多 {1} 字。请缩短，或将其作为文档添加。"],
  details: ["Details", "详情"], confidence: ["Confidence {0} %", "置信度 {0}%"],
  menu: ["Menu", "菜单"], theme: ["Appearance: {0}", "外观：{0}"],
  themeauto: ["as the system", "跟随系统"], themelight: ["light", "浅色"], themedark: ["dark", "深色"],
  logOut: ["Log out", "退出登录"],
  nameRule: ["Letters of any language, digits, _ and -; 64 characters at most, no spaces.",
    "可用任何语言的文字、数字、_ 和 -，最多 64 个字符，不含空格。"],
  nameWrong: ["“{0}” can't be a name: only letters, digits, _ and - are possible, at most 64.",
    "“{0}”不能作为名称：只能用文字、数字、_ 和 -，最多 64 个字符。"],
  nameMissing: ["Give it a name.", "请填写名称。"],
  creating: ["Creating…", "正在创建…"],
  examples: ["For example", "例如"],
  emptyBase: ["This knowledge base is empty. Add documents, then ask again.", "此知识库是空的。请先添加文档，再提问。"],
  starting: ["The server is starting and still reads the documents. Ask in a moment.", "服务器正在启动，文档还在读取，请稍后再提问。"],
  stillReading: ["Not found yet: {0} of {1} files have been read. Ask again when all have been.",
    "暂未找到：已读取 {0}/{1} 个文件，全部读取后请再问一次。"],
  loading: ["Loading…", "正在加载…"],
  viewPage: ["Page", "原页"], viewRendered: ["As written", "排版"], viewText: ["Text", "文本"],
  previousCitation: ["Previous citation", "上一处引用"], nextCitation: ["Next citation", "下一处引用"],
  ofAll: ["{0} of {1}", "{0}/{1}"],
  pageOf: ["Page {0} of {1}", "第 {0} 页，共 {1} 页"],
  pageBefore: ["Page before", "上一页"], pageAfter: ["Page after", "下一页"],
  smaller: ["Smaller", "缩小"], larger: ["Larger", "放大"],
  findInSource: ["Find in this document", "在此文档中查找"],
  notInDocument: ["“{0}” is not in this document.", "此文档中没有“{0}”。"],
  download: ["Download", "下载原件"], openOriginal: ["Open original", "打开原件"],
  unexpected: ["Something went wrong on this page: {0}. Reload it; conversations are kept.",
    "页面出错：{0}。请刷新页面；对话不会丢失。"],
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

export const when = (seconds) => new Date(seconds * 1000).toLocaleString(chosen === "zh" ? "zh-CN" : "en-GB",
  { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });

export function size(bytes) {
  const step = bytes < 1e3 ? 0 : bytes < 1e6 ? 1 : 2;
  return `${(bytes / 1000 ** step).toFixed(step && bytes / 1000 ** step < 10 ? 1 : 0)} ${["B", "kB", "MB"][step]}`;
}

// The name of a place: the server's labels begin with "p. 3" or end with "row 40", in the language of the question.
export function placeName(label) {
  const [page, row] = chosen === "zh" ? ["第 $1 页", "第 $1 行"] : ["p. $1", "row $1"];
  return (label || "").split(" · ").map((part) =>
    part.replace(/^(?:p\. (?=\d+$)|第 (?=\d+ 页$))(\d+).*/, page).replace(/^(?:row (?=\d+$)|第 (?=\d+ 行$))(\d+).*/, row)).join(" · ");
}

const ENCODINGS = {
  gb18030: ["Chinese (GB18030)", "中文 GB18030 编码"], gbk: ["Chinese (GBK)", "中文 GBK 编码"],
  gb2312: ["Chinese (GB2312)", "中文 GB2312 编码"], big5: ["traditional Chinese (Big5)", "繁体中文 Big5 编码"],
  big5hkscs: ["traditional Chinese (Big5)", "繁体中文 Big5 编码"], "hz": ["Chinese (HZ)", "中文 HZ 编码"],
  "utf-8": ["Unicode (UTF-8)", " Unicode（UTF-8）"], "utf-8-sig": ["Unicode (UTF-8)", " Unicode（UTF-8）"],
  "utf-16": ["Unicode (UTF-16)", " Unicode（UTF-16）"], "utf-16-le": ["Unicode (UTF-16)", " Unicode（UTF-16）"],
  "utf-16-be": ["Unicode (UTF-16)", " Unicode（UTF-16）"], cp1252: ["Western (Windows-1252)", "西文 Windows-1252 编码"],
};

// How a file was read, in words.
export function receipt(report) {
  const encoding = report.encoding && report.encoding.toLowerCase().replace(/_/g, "-");
  const known = ENCODINGS[encoding];
  return [
    report.format.toUpperCase(),
    encoding && say("readAs", known ? known[chosen === "zh" ? 1 : 0] : ` ${encoding.toUpperCase()} `).trim(),
    report.ocr_pages && say("ocr", report.ocr_pages),
  ].filter(Boolean);
}

// Writes the messages into all elements that name one in data-say.
export function translatePage() {
  document.documentElement.lang = chosen === "zh" ? "zh-CN" : "en";
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = say(node.dataset.say);
  for (const node of document.querySelectorAll("[data-label]")) {
    node.setAttribute("aria-label", say(node.dataset.label));
    if (node.tagName === "BUTTON") node.title = say(node.dataset.label);
  }
  for (const node of document.querySelectorAll("[data-hint]")) node.placeholder = say(node.dataset.hint);
  const other = document.getElementById("language");
  other.textContent = say("language");
  other.lang = chosen === "zh" ? "en" : "zh-CN";
}
