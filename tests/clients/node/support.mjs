// What the suites of the npm client share.

import OpenAI from 'openai';

export const MODEL = 'millrace-tiny';
export const CONTEXT = 2048; // tokens, of the built-in model
export const STORY = [
  { role: 'user', content: 'Continue this story: Once upon a time there was a little fox who lived by a mill.' },
];
export const PLAIN = { repetition_penalty: 1.0 }; // the built-in model's own default is another
export const RAW = { temperature: 1.0, top_p: 1.0, ...PLAIN }; // drawn from the model's own distribution

export const url = (server = 'MILLRACE_TINY') => process.env[server];

export function client(server = 'MILLRACE_TINY', options = {}) {
  return new OpenAI({ baseURL: url(server) + '/v1', apiKey: 'unused', maxRetries: 0, timeout: 120_000, ...options });
}

const one = client();
export const chat = (fields, options) =>
  one.chat.completions.create({ model: MODEL, messages: STORY, ...fields }, options);
export const complete = (fields, options) =>
  one.completions.create({ model: MODEL, prompt: 'Once upon a time', ...fields }, options);
export const embed = (fields) => one.embeddings.create({ model: MODEL, ...fields });

// The chunks of a stream, and what they add up to: for each choice [text, finish_reason].
export async function collect(promise) {
  const chunks = [];
  const choices = {};
  for await (const chunk of await promise) {
    chunks.push(chunk);
    for (const choice of chunk.choices) {
      const [text, end] = choices[choice.index] ?? ['', null];
      if (end !== null) throw new Error(`choice ${choice.index} goes on after its end`);
      choices[choice.index] = [text + ((choice.delta ? choice.delta.content : choice.text) ?? ''), choice.finish_reason];
    }
  }
  return { chunks, choices };
}

// The same of an answer in one piece.
export const told = (answer) =>
  Object.fromEntries(answer.choices.map((c) => [c.index, [c.message ? c.message.content : c.text, c.finish_reason]]));

export async function post(path, body, server) {
  const reply = await fetch(url(server) + path, { method: 'POST', body: JSON.stringify(body) });
  if (!reply.ok) throw new Error(await reply.text());
  return reply.json();
}

export const tokenize = async (prompt) => (await post('/tokenize', { prompt, add_special_tokens: false })).tokens;

// Every sample of /metrics by its name; those that labels tell apart are added up.
export async function metrics(server) {
  const text = await (await fetch(url(server) + '/metrics')).text();
  const samples = {};
  for (const [, name, value] of text.matchAll(/^([a-z0-9_:]+)(?:\{.*\})? (\S+)$/gm)) {
    samples[name] = (samples[name] ?? 0) + Number(value);
  }
  return samples;
}

export async function waitUntil(condition, milliseconds, what) {
  const end = Date.now() + milliseconds;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${milliseconds} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

let salts = 0;
// An extra field that keeps a request from sharing context with earlier ones.
export const fresh = () => ({ cache_salt: `node ${process.pid} ${Date.now()} ${salts++}` });
