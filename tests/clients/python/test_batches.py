"""Files and batches of a gateway."""

import json
import os
import time
import unittest

import openai

from support import MODEL, SECONDS, client

REQUESTS = 20


@unittest.skipUnless("MILLRACE_CLUSTER" in os.environ, "this machine has no nats-server")
class Batches(unittest.TestCase):
    def setUp(self):
        self.client = client("MILLRACE_CLUSTER")

    def upload(self, lines):
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        return self.client.files.create(file=("requests.jsonl", content), purpose="batch")

    def wait(self, id):
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            batch = self.client.batches.retrieve(id)
            if batch.status in ("completed", "failed", "expired", "cancelled"):
                return batch
            time.sleep(0.2)
        self.fail(f"{id} does not end")

    def test_from_file_to_file(self):
        file = self.upload({"custom_id": f"r{i}", "method": "POST", "url": "/v1/chat/completions",
                            "body": {"model": MODEL, "messages": [{"role": "user", "content": f"Day {i}"}],
                                     "max_tokens": 5 if i else -5, "temperature": 0}} for i in range(REQUESTS))
        self.assertEqual((file.object, file.purpose, file.filename, file.status),
                         ("file", "batch", "requests.jsonl", "processed"))
        self.assertEqual(self.client.files.retrieve(file.id), file)
        batch = self.client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions",
                                           completion_window="24h", metadata={"of": "a test"})
        self.assertEqual((batch.object, batch.endpoint, batch.completion_window, batch.metadata),
                         ("batch", "/v1/chat/completions", "24h", {"of": "a test"}))
        self.assertEqual(batch.expires_at, batch.created_at + 24 * 3600)
        batch = self.wait(batch.id)
        self.assertEqual(batch.status, "completed")
        counts = batch.request_counts
        self.assertEqual((counts.total, counts.completed, counts.failed), (REQUESTS, REQUESTS - 1, 1))
        lines = [json.loads(text) for text in self.client.files.content(batch.output_file_id).text.splitlines()]
        self.assertEqual([line["custom_id"] for line in lines], [f"r{i}" for i in range(1, REQUESTS)])
        for line in lines:
            body = openai.types.chat.ChatCompletion.model_validate(line["response"]["body"])
            self.assertLessEqual(body.usage.completion_tokens, 5)
        [error] = [json.loads(text) for text in self.client.files.content(batch.error_file_id).text.splitlines()]
        self.assertEqual((error["custom_id"], error["response"]["status_code"]), ("r0", 400))
        self.assertIn(batch.id, [other.id for other in self.client.batches.list(limit=1)], "all pages are read")
        for id in (file.id, batch.output_file_id, batch.error_file_id):
            self.assertTrue(self.client.files.delete(id).deleted)
        with self.assertRaises(openai.NotFoundError):
            self.client.files.content(file.id)

    def test_cancelled_and_failed(self):
        file = self.upload([{"custom_id": "a"}])
        batch = self.client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        batch = self.wait(batch.id)
        self.assertEqual(batch.status, "failed")
        self.assertEqual([(error.line, error.param) for error in batch.errors.data], [(1, None)])
        with self.assertRaises(openai.ConflictError):
            self.client.batches.cancel(batch.id)
        with self.assertRaises(openai.NotFoundError):
            self.client.batches.retrieve("batch_none")
        with self.assertRaises(openai.BadRequestError):
            self.client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h")


if __name__ == "__main__":
    unittest.main()
