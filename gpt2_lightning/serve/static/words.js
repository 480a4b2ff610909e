// What the page says, in English and Chinese.

const apple = /Mac|iPhone|iPad/.test(navigator.platform);

const english = {
  lead: "A base model: it goes on with your text. It answers no questions and follows no instructions.",
  prompt: "Text to continue",
  start: "Continue",
  startKey: apple ? "⌘ Enter" : "Ctrl Enter",
  stop: "Stop",
  shade: "Shade by surprisal",
  options: "Options",
  model: "Model",
  both: "Both, side by side",
  maxTokens: "Tokens at most",
  n: "Samples",
  temperature: "Temperature",
  topK: "Top k (0: all)",
  topP: "Top p",
  seed: "Seed",
  random: "random",
  stopStrings: "Stop before any of these, one a line",
  key: "API key",
  samples: "Samples",
  copy: "Copy",
  copied: "Copied",
  reuse: "Go on from here",
  bits: "bits",
  likelier: "Likeliest here:",
  calm: "expected",
  striking: "surprising",
  writing: (tokens, rate) => `Writing: ${tokens} tokens, ${rate} a second`,
  written: (tokens, seconds) => `${tokens} tokens in ${seconds} s`,
  stopped: (tokens) => `Stopped after ${tokens} tokens`,
  reading: "Waiting for the model",
  tokens: (count) => `${count} tokens`,
  bitsEach: (value) => `${value} bits each`,
  ends: { stop: "ended", length: "cut at the limit", stopped: "stopped" },
  seedOf: (seed) => `seed ${seed}`,
  greedy: "likeliest tokens",
  noServer: "The server does not answer.",
  needsKey: "This server asks for an API key.",
};

const chinese = {
  lead: "这是一个基础模型：它只会接着你的文字往下写，不回答问题，也不执行指令。",
  prompt: "要续写的文字",
  start: "续写",
  startKey: english.startKey,
  stop: "停止",
  shade: "按意外程度着色",
  options: "选项",
  model: "模型",
  both: "两个模型并排对比",
  maxTokens: "最多词元数",
  n: "样本数",
  temperature: "温度",
  topK: "Top k（0 为全部）",
  topP: "Top p",
  seed: "随机种子",
  random: "随机",
  stopStrings: "遇到以下任一文字即停止，每行一个",
  key: "API 密钥",
  samples: "样本",
  copy: "复制",
  copied: "已复制",
  reuse: "从这里继续",
  bits: "比特",
  likelier: "此处最可能：",
  calm: "意料之中",
  striking: "出乎意料",
  writing: (tokens, rate) => `正在生成：${tokens} 个词元，每秒 ${rate} 个`,
  written: (tokens, seconds) => `${seconds} 秒生成 ${tokens} 个词元`,
  stopped: (tokens) => `已停止，共 ${tokens} 个词元`,
  reading: "等待模型响应",
  tokens: (count) => `${count} 个词元`,
  bitsEach: (value) => `平均 ${value} 比特`,
  ends: { stop: "自然结束", length: "达到上限", stopped: "已停止" },
  seedOf: (seed) => `种子 ${seed}`,
  greedy: "最可能的词元",
  noServer: "服务器没有响应。",
  needsKey: "此服务器需要 API 密钥。",
};

const isChinese = navigator.language.toLowerCase().startsWith("zh");

export const words = isChinese ? chinese : english;

/** Write the words into the page, in the browser's language. */
export function speak() {
  document.documentElement.lang = isChinese ? "zh" : "en";
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = words[node.dataset.word];
  for (const node of document.querySelectorAll("[data-placeholder]")) node.placeholder = words[node.dataset.placeholder];
  for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", words[node.dataset.label]);
}
