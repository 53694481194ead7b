// Chats and completions: streams, usage, several choices, ends, log probabilities, sampling.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import { chat, client, collect, complete, CONTEXT, fresh, MODEL, PLAIN, RAW, STORY, told, tokenize } from './support.mjs';

const GREEDY = { temperature: 0, ...PLAIN };
const PROMPTS = ['Once upon a time', 'The old sailor said', 'There was a mouse'];
const texts = (parts) => Object.values(parts).map(([text]) => text);

describe('chat', () => {
  test('has the form of the API', async () => {
    const answer = await chat({ max_tokens: 12, temperature: 0 });
    assert.match(answer.id, /^chatcmpl-\w+$/);
    assert.equal(answer.object, 'chat.completion');
    assert.equal(answer.model, MODEL);
    assert.equal(answer.choices.length, 1);
    assert.equal(answer.choices[0].message.role, 'assistant');
    assert.equal(answer.choices[0].finish_reason, 'length');
    assert.equal(answer.usage.completion_tokens, 12);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + 12);
    assert.equal(typeof answer.usage.prompt_tokens_details.cached_tokens, 'number');
    assert.ok(answer._request_id);
  });

  test('streams what it says whole', async () => {
    for (const fields of [GREEDY, { seed: 1 }, { seed: 2, ...RAW }, { seed: 3, temperature: 1.6 }]) {
      const whole = await chat({ max_tokens: 40, ...fields });
      const { chunks, choices } = await collect(chat({ max_tokens: 40, stream: true, ...fields }));
      assert.deepEqual(choices, told(whole));
      assert.equal(new Set(chunks.map((chunk) => chunk.id)).size, 1);
      assert.equal(chunks[0].choices[0].delta.role, 'assistant');
      assert.ok(chunks.every((chunk) => chunk.usage === undefined));
    }
  });

  test('goes through the stream helper', async () => {
    const fields = { model: MODEL, messages: STORY, max_tokens: 30, seed: 5 };
    const stream = client().chat.completions.stream(fields);
    let pieces = '';
    stream.on('content', (delta) => (pieces += delta));
    const final = await stream.finalChatCompletion();
    assert.equal(pieces, final.choices[0].message.content);
    assert.deepEqual(told(final), told(await chat({ max_tokens: 30, seed: 5 })));
  });

  test('tells the usage last in a stream', async () => {
    const whole = await chat({ max_tokens: 20, seed: 4 });
    const { chunks } = await collect(chat({ max_tokens: 20, seed: 4, stream: true, stream_options: { include_usage: true } }));
    const last = chunks.at(-1);
    assert.deepEqual(last.choices, []);
    for (const name of ['prompt_tokens', 'completion_tokens', 'total_tokens']) assert.equal(last.usage[name], whole.usage[name]);
    assert.ok(chunks.slice(0, -1).every((chunk) => chunk.usage === null && chunk.choices.length > 0));
  });

  test('counts shared context', async () => {
    const salt = fresh();
    const content = 'The red boat sailed away. The blue boat stayed. '.repeat(20);
    const fields = { messages: [{ role: 'user', content }], max_tokens: 5, temperature: 0, ...salt };
    const [first, second] = [(await chat(fields)).usage, (await chat(fields)).usage];
    assert.equal(first.prompt_tokens_details.cached_tokens, 0);
    assert.ok(second.prompt_tokens_details.cached_tokens >= first.prompt_tokens - 16);
    assert.ok(second.prompt_tokens_details.cached_tokens < first.prompt_tokens);
  });

  test('gives four choices, interleaved in a stream', async () => {
    const fields = { n: 4, max_tokens: 24, seed: 11, ...RAW };
    const whole = await chat(fields);
    assert.deepEqual(whole.choices.map((choice) => choice.index), [0, 1, 2, 3]);
    assert.equal(new Set(texts(told(whole))).size, 4);
    const { chunks, choices } = await collect(chat({ ...fields, stream: true }));
    assert.deepEqual(choices, told(whole));
    const order = chunks.flatMap((chunk) => chunk.choices.map((choice) => choice.index));
    assert.ok(order.indexOf(3) < order.lastIndexOf(0), 'the choices come one after the other');
    assert.deepEqual(told(await chat({ ...fields, n: 1 }))[0], told(whole)[0]);
  });

  test('keeps limits of length', async () => {
    for (const field of ['max_tokens', 'max_completion_tokens']) {
      for (const most of [1, 2, 17]) {
        const answer = await chat({ temperature: 0, [field]: most });
        assert.deepEqual([answer.usage.completion_tokens, answer.choices[0].finish_reason], [most, 'length']);
      }
    }
    assert.equal((await chat({ temperature: 0, max_tokens: 9, max_completion_tokens: 5 })).usage.completion_tokens, 5);
    assert.equal((await chat({ temperature: 0, ignore_eos: true })).usage.total_tokens, CONTEXT);
  });

  test('ends when the model does', async () => {
    const messages = [{ role: 'user', content: 'Repeat this: sailor prince slow fool' }];
    const answer = await chat({ messages, temperature: 0, max_tokens: 50 });
    assert.equal(answer.choices[0].finish_reason, 'stop');
    assert.equal(answer.choices[0].message.content.trim(), 'sailor prince slow fool');
  });

  test('takes fields that ask for nothing here', async () => {
    const plain = told(await chat({ max_tokens: 12, temperature: 0 }));
    const more = { user: 'someone', metadata: { a: 'b' }, store: true, service_tier: 'auto', reasoning_effort: 'low', verbosity: 'low' };
    assert.deepEqual(told(await chat({ max_tokens: 12, temperature: 0, ...more, field_of_tomorrow: { deep: [null] } })), plain);
  });

  test('takes text of all the world', async () => {
    for (const text of ['Žluťoučký kůň', '日本語', '😀👩‍👩‍👧‍👦🏴‍☠️', 'a\u0000b', 'مرحبا', '']) {
      const fields = { messages: [{ role: 'user', content: text }], max_tokens: 30, seed: 1, temperature: 2 };
      assert.deepEqual((await collect(chat({ ...fields, stream: true }))).choices, told(await chat(fields)));
    }
  });
});

describe('completions', () => {
  test('take strings, lists and ids', async () => {
    const fields = { max_tokens: 16, seed: 3 };
    const expected = {};
    for (const [i, prompt] of PROMPTS.entries()) expected[i] = told(await complete({ prompt, ...fields }))[0];
    assert.deepEqual(told(await complete({ prompt: PROMPTS, ...fields })), expected);
    const ids = await Promise.all(PROMPTS.map(tokenize));
    const bare = { ...fields, add_special_tokens: false };
    assert.deepEqual(told(await complete({ prompt: ids, ...fields })), told(await complete({ prompt: PROMPTS, ...bare })));
    assert.deepEqual(told(await complete({ prompt: ids[0], ...fields }))[0], told(await complete({ prompt: PROMPTS[0], ...bare }))[0]);
    assert.deepEqual((await collect(complete({ prompt: PROMPTS, stream: true, ...fields }))).choices, expected);
  });

  test('order the choices of several prompts', async () => {
    const fields = { max_tokens: 12, seed: 5, n: 2, ...RAW };
    const both = told(await complete({ prompt: PROMPTS.slice(0, 2), ...fields }));
    const alone = await Promise.all(PROMPTS.slice(0, 2).map(async (prompt) => told(await complete({ prompt, ...fields }))));
    assert.deepEqual(both, { 0: alone[0][0], 1: alone[0][1], 2: alone[1][0], 3: alone[1][1] });
  });

  test('echo the prompt', async () => {
    const prompt = 'Ein Märchen: 日本 😀👩‍👩‍👧‍👦 \u0301x';
    const plain = (await complete({ prompt, max_tokens: 8, temperature: 0 })).choices[0].text;
    assert.equal((await complete({ prompt, max_tokens: 8, temperature: 0, echo: true })).choices[0].text, prompt + plain);
    const { choices } = await collect(complete({ prompt, max_tokens: 8, temperature: 0, echo: true, stream: true }));
    assert.equal(choices[0][0], prompt + plain);
  });

  test('come from a model without a chat template', async () => {
    const stories = client('MILLRACE_STORIES');
    const fields = { model: 'stories260K', prompt: PROMPTS[0], max_tokens: 40, ...GREEDY };
    const whole = await stories.completions.create(fields);
    assert.match(whole.choices[0].text, /there was/);
    assert.deepEqual((await collect(stories.completions.create({ ...fields, stream: true }))).choices, told(whole));
    await assert.rejects(stories.chat.completions.create({ model: 'stories260K', messages: STORY }), /chat template/);
  });
});

describe('log probabilities', () => {
  test('of a chat', async () => {
    for (const fields of [GREEDY, { seed: 4, ...RAW }]) {
      const asked = { max_tokens: 25, logprobs: true, top_logprobs: 5, ...fields };
      const whole = await chat(asked);
      const tokens = whole.choices[0].logprobs.content;
      assert.equal(Buffer.concat(tokens.map((token) => Buffer.from(token.bytes))).toString(), whole.choices[0].message.content);
      for (const token of tokens) {
        assert.equal(token.top_logprobs.length, 5);
        const values = token.top_logprobs.map((top) => top.logprob);
        assert.deepEqual(values, values.toSorted((a, b) => b - a));
        assert.ok(values.reduce((sum, value) => sum + Math.exp(value), 0) <= 1 + 1e-5);
        if (fields === GREEDY) assert.equal(token.token, token.top_logprobs[0].token);
      }
      const { chunks, choices } = await collect(chat({ ...asked, stream: true }));
      assert.deepEqual(choices, told(whole));
      assert.deepEqual(chunks.flatMap((chunk) => chunk.choices[0].logprobs?.content ?? []), tokens);
    }
  });

  test('of completions', async () => {
    const { choices } = await complete({ max_tokens: 20, logprobs: 3, ...GREEDY });
    const { tokens, token_logprobs, top_logprobs, text_offset } = choices[0].logprobs;
    assert.equal(tokens.join(''), choices[0].text);
    assert.deepEqual(text_offset, tokens.map((_, i) => tokens.slice(0, i).join('').length));
    tokens.forEach((token, i) => assert.equal(top_logprobs[i][token], token_logprobs[i]));
  });

  test('of a prompt', async () => {
    const prompt = 'The old sailor looked at the sea and said nothing.';
    const fields = { prompt, echo: true, logprobs: 1, temperature: 0 };
    const [none, one] = [await complete({ ...fields, max_tokens: 0 }), await complete({ ...fields, max_tokens: 1 })];
    const [scored, longer] = [none.choices[0].logprobs, one.choices[0].logprobs];
    assert.equal(none.choices[0].text, prompt);
    assert.equal(none.usage.completion_tokens, 0);
    assert.equal(scored.token_logprobs[0], null);
    assert.ok(scored.token_logprobs.slice(1).every((value) => value <= 0));
    assert.deepEqual(longer.token_logprobs.slice(0, -1), scored.token_logprobs);
  });
});

describe('sampling', () => {
  test('a seed repeats, seeds differ', async () => {
    const run = async (seed) => told(await chat({ max_tokens: 30, seed, ...RAW }))[0][0];
    const first = await Promise.all([1, 2, 3, 4, 5].map(run));
    assert.equal(new Set(first).size, 5);
    assert.deepEqual(await Promise.all([1, 2, 3, 4, 5].map(run)), first);
    assert.equal(new Set(await Promise.all([1, 2, undefined].map(async (seed) => told(await chat({ max_tokens: 30, seed, temperature: 0 }))[0][0]))).size, 1);
  });

  test('stop strings at every place of an answer', async () => {
    const fields = { max_tokens: 40, ...GREEDY };
    const text = told(await chat(fields))[0][0];
    for (let at = 0; at + 8 < text.length; ++at) {
      const stop = text.slice(at, at + 1 + (at % 7));
      const expected = { 0: [text.slice(0, text.indexOf(stop)), 'stop'] };
      assert.deepEqual(told(await chat({ stop, ...fields })), expected, stop);
      assert.deepEqual((await collect(chat({ stop: ['never in it', stop], stream: true, ...fields }))).choices, expected, stop);
    }
    assert.deepEqual(told(await chat({ stop: text.slice(-5) + '?!', ...fields })), { 0: [text, 'length'] });
  });

  test('biases force and ban tokens', async () => {
    const [the] = await tokenize(' the');
    assert.deepEqual(told(await chat({ max_tokens: 10, seed: 1, logit_bias: { [the]: 100 } })), { 0: [' the'.repeat(10), 'length'] });
    assert.deepEqual(told(await chat({ max_tokens: 10, seed: 1, logit_bias: { 1: 100 } })), { 0: ['', 'stop'] });
    const asked = { max_tokens: 30, logprobs: true, ...GREEDY };
    const first = (await chat(asked)).choices[0].logprobs.content[0].token;
    const [id] = await tokenize(first);
    const banned = (await chat({ ...asked, logit_bias: { [id]: -100 } })).choices[0].logprobs.content;
    assert.ok(banned.every((token) => token.token !== first));
  });

  test('penalties are what the API says', async () => {
    for (const [presence, frequency] of [[1.5, 0], [0, 1.2], [-1, 0.3], [2, 2]]) {
      const asked = { max_tokens: 50, logprobs: true, top_logprobs: 20, presence_penalty: presence, frequency_penalty: frequency };
      const counts = {};
      for (const token of (await chat({ ...asked, ...GREEDY })).choices[0].logprobs.content) {
        const score = ({ bytes, logprob }) => logprob - (counts[bytes] ? presence + frequency * counts[bytes] : 0);
        assert.ok(score(token) >= Math.max(...token.top_logprobs.map(score)) - 1e-4);
        counts[token.bytes] = (counts[token.bytes] ?? 0) + 1;
      }
    }
  });
});
