// Embeddings, models, errors, streams that are left, many requests at once.

import assert from 'node:assert/strict';
import { describe, test } from 'node:test';

import OpenAI from 'openai';

import { chat, client, collect, complete, CONTEXT, embed, fresh, metrics, MODEL, RAW, STORY, told, tokenize, waitUntil } from './support.mjs';

// A promise that fails as this exception, with this status, code and param.
async function refused(promise, kind, { status, code, param } = {}) {
  await assert.rejects(promise, (error) => {
    assert.ok(error instanceof kind, `${error.constructor.name}: ${error.message}`);
    if (status) assert.equal(error.status, status);
    if (code) assert.equal(error.code, code);
    if (param) assert.equal(error.param, param);
    assert.ok(error.type);
    return true;
  });
}

describe('embeddings', () => {
  const texts = ['The fox sleeps.', 'A ship sailed over the sea.', '日本 😀'];

  test('are the same numbers in both encodings, alone or among others', async () => {
    const together = await embed({ input: texts, encoding_format: 'float' });
    for (const [i, input] of texts.entries()) {
      const [numbers, letters] = [await embed({ input, encoding_format: 'float' }), await embed({ input })];
      assert.equal(numbers.data[0].embedding.length, 192);
      assert.deepEqual(numbers.data[0].embedding.map(Math.fround), Array.from(letters.data[0].embedding, Math.fround));
      assert.deepEqual(together.data[i].embedding, numbers.data[0].embedding);
      assert.equal(together.data[i].index, i);
    }
    assert.ok(together.usage.prompt_tokens > 10);
  });

  test('have their limits', async () => {
    const [x] = await tokenize('x');
    assert.equal((await embed({ input: Array(CONTEXT).fill(x) })).data[0].embedding.length, 192);
    const long = { status: 400, code: 'context_length_exceeded', param: 'input' };
    await refused(embed({ input: Array(CONTEXT + 1).fill(x) }), OpenAI.BadRequestError, long);
    await refused(embed({ input: 'x', dimensions: 64 }), OpenAI.BadRequestError, { param: 'dimensions' });
    await refused(embed({ input: [] }), OpenAI.BadRequestError, { param: 'input' });
  });
});

describe('models and errors', () => {
  test('models', async () => {
    const ids = [];
    for await (const model of client().models.list()) ids.push(model.id);
    assert.deepEqual(ids, [MODEL]);
    assert.equal((await client().models.retrieve(MODEL)).object, 'model');
    await refused(client().models.retrieve('other'), OpenAI.NotFoundError, { status: 404, code: 'model_not_found' });
    await refused(chat({ model: 'gpt-4' }), OpenAI.NotFoundError, { status: 404, code: 'model_not_found' });
    await refused(client().moderations.create({ input: 'x' }), OpenAI.NotFoundError, { status: 404 });
  });

  test('bad requests', async () => {
    for (const [fields, param] of [
      [{ temperature: 'hot' }, 'temperature'],
      [{ temperature: 3 }, 'temperature'],
      [{ n: 0 }, 'n'],
      [{ max_tokens: -1 }, 'max_tokens'],
      [{ stop: 7 }, 'stop'],
      [{ messages: [] }, 'messages'],
      [{ messages: [{ role: 'wizard', content: 'x' }] }, 'messages[0].role'],
      [{ top_logprobs: 3 }, 'top_logprobs'],
      [{ logit_bias: { x: 1 } }, 'logit_bias'],
      [{ stream_options: { include_usage: true } }, 'stream_options'],
    ]) {
      await refused(chat(fields), OpenAI.BadRequestError, { status: 400, param });
    }
    const long = { status: 400, code: 'context_length_exceeded' };
    await refused(complete({ prompt: 'The mill turns. '.repeat(6400) }), OpenAI.BadRequestError, long);
    await refused(chat({ max_tokens: CONTEXT }), OpenAI.BadRequestError, long);
    // A stream that is refused fails before it begins.
    await refused(chat({ stream: true, top_p: 2 }), OpenAI.BadRequestError, { param: 'top_p' });
  });

  test('keys', async () => {
    const ask = (apiKey) => client('MILLRACE_KEYED', { apiKey }).completions.create({ model: MODEL, prompt: 'x', max_tokens: 2 });
    assert.equal((await ask(process.env.MILLRACE_KEY)).usage.completion_tokens, 2);
    await refused(ask('sk-nobody'), OpenAI.AuthenticationError, { status: 401, code: 'invalid_api_key' });
  });

  test('a full queue', async () => {
    const busy = client('MILLRACE_BUSY');
    const ask = (fields, options) => busy.completions.create({ model: MODEL, prompt: 'x', max_tokens: 3, ...fields }, options);
    const running = await ask({ max_tokens: 1900, ignore_eos: true, stream: true });
    await running[Symbol.asyncIterator]().next(); // until then it may be the one that waits
    try {
      const waiting = ask({});
      waiting.catch(() => {});
      await waitUntil(async () => (await metrics('MILLRACE_BUSY'))['vllm:num_requests_waiting'] >= 1, 10_000, 'waiting');
      await assert.rejects(ask({}), (error) => {
        assert.ok(error instanceof OpenAI.RateLimitError);
        assert.match(error.headers.get('retry-after'), /^[1-9]\d*$/);
        return true;
      });
      running.controller.abort();
      assert.equal((await ask({}, { maxRetries: 60 })).usage.completion_tokens, 3);
      assert.equal((await waiting).usage.completion_tokens, 3);
    } finally {
      running.controller.abort();
    }
  });
});

describe('streams that are left', () => {
  const long = () => ({ max_tokens: 1900, n: 4, temperature: 1, ignore_eos: true, ...fresh() });
  const load = async () => {
    const samples = await metrics();
    return [samples['vllm:num_requests_running'] + samples['vllm:num_requests_waiting'], samples['vllm:kv_cache_usage_perc']];
  };
  const leave = async (go) => {
    await waitUntil(async () => (await load())[0] === 0, 10_000, 'a server that rests');
    const [, before] = await load();
    await go();
    await waitUntil(async () => (await load())[0] === 0, 1000, 'nothing running');
    await waitUntil(async () => (await load())[1] <= before, 1000, 'KV memory given back');
  };

  test('by leaving the loop, by aborting, before the answer', async () => {
    await leave(async () => {
      const stream = await chat({ stream: true, ...long() });
      let count = 0;
      for await (const chunk of stream) if (chunk && ++count === 5) break;
    });
    await leave(async () => {
      const stream = await complete({ stream: true, ...long() });
      stream.controller.abort();
    });
    await leave(async () => {
      const controller = new AbortController();
      const answer = complete(long(), { signal: controller.signal });
      answer.catch(() => {});
      await waitUntil(async () => (await load())[0] > 0, 10_000, 'running');
      controller.abort();
      await assert.rejects(answer, OpenAI.APIUserAbortError);
    });
  });
});

describe('load', () => {
  test('64 unlike requests at once say what each says alone', async () => {
    const run = async (seed) => {
      const prompt = `Once upon a time the number was ${seed}. ` + 'It rained. '.repeat(7 * (seed % 6));
      const fields = { seed, max_tokens: 5 + ((seed * 7) % 60), temperature: [0, 0.7, 1, 1.6][seed % 4] };
      const messages = [{ role: 'user', content: prompt }];
      switch (seed % 5) {
        case 0:
          return told(await chat({ messages, n: 3, ...fields }));
        case 1:
          return told(await complete({ prompt: [prompt, 'The sea'], stop: ['e '], ...fields }));
        case 2:
          return (await collect(chat({ messages, stream: true, presence_penalty: 1, ...fields }))).choices;
        case 3:
          return told(await chat({ messages: STORY, guided_regex: '[a-z]{1,9}(, [a-z]{2,9}){0,5}', ...fields, ...RAW }));
        default:
          return (await embed({ input: prompt, encoding_format: 'float' })).data[0].embedding;
      }
    };
    const seeds = Array.from({ length: 64 }, (_, seed) => seed);
    const alone = [];
    for (const seed of seeds) alone.push(await run(seed));
    assert.deepEqual(await Promise.all(seeds.map(run)), alone);
    assert.deepEqual((await Promise.all(seeds.toReversed().map(run))).reverse(), alone);
  });
});
