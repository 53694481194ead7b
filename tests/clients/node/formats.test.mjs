// Answers that have to match: schemas, expressions, choices, grammars, calls of tools.

import { Ajv2020 } from 'ajv/dist/2020.js';
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, test } from 'node:test';

import { BadRequestError } from 'openai';

import { chat, client, collect, complete, MODEL, RAW, STORY, told, tokenize } from './support.mjs';

const SCHEMAS = JSON.parse(readFileSync(process.env.MILLRACE_SCHEMAS));
const MANY = 1200; // tokens: a model of this size likes to put much white space between the parts of JSON
const asFormat = (schema) => ({ type: 'json_schema', json_schema: { name: 'answer', schema, strict: true } });
const isValid = (schema, value) => new Ajv2020({ strict: false }).validate(schema, value);

const WEATHER = {
  type: 'object',
  properties: { city: { enum: ['Riga', 'Köln'] }, days: { type: 'integer', minimum: 1, maximum: 7 } },
  required: ['city', 'days'],
  additionalProperties: false,
};
const CLOCK = { type: 'object', properties: {}, additionalProperties: false };
const PARAMETERS = { get_weather: WEATHER, now: CLOCK };
const TOOLS = Object.entries(PARAMETERS).map(([name, parameters]) => ({ type: 'function', function: { name, parameters } }));
const named = (name) => ({ type: 'function', function: { name } });

// Closes what the end of the text leaves open, after taking back what is no whole value yet; undefined: not JSON so far.
function closed(text) {
  for (let cut = text.length; cut >= 0; --cut) {
    const stack = [];
    let quoted = false;
    for (let i = 0; i < cut; ++i) {
      const c = text[i];
      if (quoted) {
        if (c === '\\') ++i;
        else if (c === '"') quoted = false;
      } else if (c === '"') quoted = true;
      else if (c === '{' || c === '[') stack.push(c === '{' ? '}' : ']');
      else if (c === '}' || c === ']') stack.pop();
    }
    if (quoted) continue;
    try {
      return JSON.parse(text.slice(0, cut).replace(/[,\s]+$/, '') + stack.reverse().join(''));
    } catch {
      // further back
    }
  }
  return undefined;
}

describe('schemas', () => {
  test('random ones', async () => {
    const ends = { stop: 0, length: 0 };
    for (const [seed, schema] of SCHEMAS.entries()) {
      const { choices } = await chat({ seed, max_tokens: MANY, response_format: asFormat(schema), ...RAW });
      const text = choices[0].message.content;
      ++ends[choices[0].finish_reason];
      if (choices[0].finish_reason === 'stop') {
        assert.ok(isValid(schema, JSON.parse(text)), `${text} by ${JSON.stringify(schema)}`);
      } else {
        const open = { ...schema, required: [] };
        assert.equal(typeof closed(text), 'object', text);
        assert.ok(Object.keys(closed(text)).every((name) => name in open.properties), text);
      }
    }
    assert.equal(SCHEMAS.length, 100);
    assert.ok(ends.stop >= 95, JSON.stringify(ends));
  });

  test('stream the same, with several choices', async () => {
    for (const [seed, schema] of SCHEMAS.slice(0, 10).entries()) {
      const fields = { seed, max_tokens: MANY, n: 2, response_format: asFormat(schema), ...RAW };
      assert.deepEqual((await collect(chat({ ...fields, stream: true }))).choices, told(await chat(fields)));
    }
  });

  test('any object', async () => {
    // Without a limit of their own strings and objects would go on: a push towards their ends.
    const [[quote], [brace]] = [await tokenize('"'), await tokenize('}')];
    const fields = { max_tokens: 300, temperature: 0.8, response_format: { type: 'json_object' }, logit_bias: { [quote]: 7, [brace]: 7 } };
    let ended = 0;
    for (let seed = 0; seed < 10; ++seed) {
      const { choices } = await chat({ seed, ...fields });
      const text = choices[0].message.content;
      ended += choices[0].finish_reason === 'stop';
      assert.equal(typeof (choices[0].finish_reason === 'stop' ? JSON.parse(text) : closed(text)), 'object', text);
    }
    assert.ok(ended > 2);
  });

  test('that are none are refused', async () => {
    for (const schema of [{ type: 'strong' }, { type: 'object', properties: 7 }, { $ref: '#/nowhere' }]) {
      await assert.rejects(chat({ response_format: asFormat(schema) }), (error) => {
        assert.ok(error instanceof BadRequestError);
        assert.equal(error.param, 'response_format.json_schema.schema');
        return true;
      });
    }
  });
});

describe('guided', () => {
  const answers = async (fields) =>
    Promise.all(
      [1, 2, 3, 4, 5, 6, 7, 8].map(async (seed) => {
        const { choices } = await complete({ seed, max_tokens: 80, temperature: 1, ...fields });
        assert.equal(choices[0].finish_reason, 'stop');
        return choices[0].text;
      }),
    );

  test('by expressions, choices and grammars', async () => {
    for (const text of await answers({ guided_regex: '[A-Z][a-z]{2,8} [0-9]{3}' })) assert.match(text, /^[A-Z][a-z]{2,8} [0-9]{3}$/);
    for (const text of await answers({ guided_choice: ['yes', 'no', 'größer'] })) assert.ok(['yes', 'no', 'größer'].includes(text));
    const grammar = 'start: NUMBER (OP NUMBER)~1..3\nNUMBER: /[0-9]{1,2}/\nOP: "+" | "-"\n';
    for (const text of await answers({ guided_grammar: grammar })) assert.match(text, /^\d{1,2}([-+]\d{1,2}){1,3}$/);
  });

  test('wrong ones are refused', async () => {
    for (const fields of [{ guided_regex: '(a' }, { guided_choice: [] }, { guided_grammar: 'start: nothing' }]) {
      await assert.rejects(complete(fields), BadRequestError);
    }
  });
});

describe('tools', () => {
  const ask = (fields) => chat({ tools: TOOLS, max_tokens: MANY, ...RAW, ...fields });
  const check = (calls) => {
    for (const call of calls) {
      assert.equal(call.type, 'function');
      assert.match(call.id, /^call_\w{8,}$/);
      assert.ok(isValid(PARAMETERS[call.function.name], JSON.parse(call.function.arguments)), call.function.arguments);
    }
  };
  const calls = (choice) => choice.message.tool_calls.map((call) => [call.function.name, call.function.arguments]);

  test('named and required, whole and put together by the helper', async () => {
    for (const tool_choice of [named('get_weather'), named('now'), 'required']) {
      for (const seed of [1, 2, 3]) {
        const fields = { tool_choice, seed };
        const choice = (await ask(fields)).choices[0];
        if (choice.finish_reason === 'length') continue;
        assert.equal(choice.finish_reason, tool_choice === 'required' ? 'tool_calls' : 'stop');
        assert.equal(choice.message.content, null);
        check(choice.message.tool_calls);
        const stream = client().chat.completions.stream({ model: MODEL, messages: STORY, tools: TOOLS, max_tokens: MANY, ...RAW, ...fields });
        const final = await stream.finalChatCompletion();
        assert.deepEqual(calls(final.choices[0]), calls(choice));
        assert.equal(final.choices[0].finish_reason, choice.finish_reason);
        check(final.choices[0].message.tool_calls);
      }
    }
  });

  test('one call only', async () => {
    for (const seed of [1, 2, 3, 4, 5, 6]) {
      const { choices } = await ask({ tool_choice: 'required', parallel_tool_calls: false, seed });
      assert.equal(choices[0].finish_reason, 'tool_calls');
      assert.equal(choices[0].message.tool_calls.length, 1);
      check(choices[0].message.tool_calls);
    }
  });

  test('none, and left to a model that knows no tools', async () => {
    const plain = told(await chat({ max_tokens: 20, seed: 1, ...RAW }));
    assert.deepEqual(told(await ask({ tool_choice: 'none', max_tokens: 20, seed: 1 })), plain);
    await assert.rejects(ask({}), (error) => error instanceof BadRequestError && error.param === 'tools');
    await assert.rejects(ask({ tool_choice: named('other') }), BadRequestError);
  });
});
