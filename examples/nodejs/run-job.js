// Starts a job, follows its output and prints how it ended on each node.
//
//     npm install
//     node run-job.js --server HOST:PORT --credentials DIRECTORY COMMAND NODE...
//
// DIRECTORY is a client directory as `shovey-trio init` and `shovey-trio user cert` make it (ca.crt, client.crt,
// client.key). The client is made from the .proto files of this repository when the program starts (--proto DIRECTORY
// names another place for them). Exits with 0 if the command succeeded everywhere, with 1 if not.

import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';

import grpc from '@grpc/grpc-js';
import protoLoader from '@grpc/proto-loader';

// Every controller's certificate carries this name, whatever address it is reached by.
const SERVER_NAME = 'shovey-trio.internal';
const CALL_DEADLINE_MS = 30_000;

function openClient(server, credentials, proto) {
  const definition = protoLoader.loadSync('shovey_trio/v1/job_service.proto', {
    includeDirs: [proto],
    keepCase: true,
    longs: String, // 64-bit positions do not fit in a number
    enums: String,
    defaults: true,
    oneofs: true,
  });
  const { JobService } = grpc.loadPackageDefinition(definition).shovey_trio.v1;
  const file = (name) => readFileSync(join(credentials, name));
  const tls = grpc.credentials.createSsl(file('ca.crt'), file('client.key'), file('client.crt'));
  return new JobService(server, tls, { 'grpc.ssl_target_name_override': SERVER_NAME });
}

function startJob(client, command, nodes) {
  // Sent again with the same id, the request would be answered with the same job.
  const request = { request_id: randomUUID(), command, target: { nodes: { names: nodes } } };
  const options = { deadline: Date.now() + CALL_DEADLINE_MS };
  return new Promise((resolve, reject) => {
    client.StartJob(request, options, (error, answer) => (error ? reject(error) : resolve(answer.job)));
  });
}

// Every event of the job until it has ended; a broken stream is resumed where it broke.
async function* watch(client, jobId) {
  let token = '';
  const wait = new grpc.Metadata({ waitForReady: true }); // a controller that is away for a moment is waited for
  for (;;) {
    try {
      for await (const answer of client.WatchJob({ job_id: jobId, resume_token: token, include_output: true }, wait)) {
        yield answer;
        token = answer.resume_token;
      }
      return;
    } catch (error) {
      if (error.code !== grpc.status.UNAVAILABLE) throw error;
    }
  }
}

// Prints output by whole lines, each behind its node's name: chunks end anywhere, even within a character.
class Lines {
  #begun = new Map();

  take(node, stream, data) {
    const key = `${stream} ${node}`;
    const text = Buffer.concat([this.#begun.get(key)?.rest ?? Buffer.alloc(0), data]);
    let from = 0;
    for (let end; (end = text.indexOf('\n', from)) >= 0; from = end + 1) this.#print(node, text.subarray(from, end));
    this.#begun.set(key, { node, rest: text.subarray(from) });
  }

  // Prints what has no newline at its end.
  finish() {
    for (const { node, rest } of this.#begun.values()) if (rest.length > 0) this.#print(node, rest);
    this.#begun.clear();
  }

  #print(node, line) {
    console.log(`${node} | ${line.toString('utf8')}`);
  }
}

// Whether the command succeeded on every node.
async function runJob(client, command, nodes) {
  let job = await startJob(client, command, nodes);
  console.log(`job ${job.id}`);

  const lines = new Lines();
  const runs = new Map();
  for await (const answer of watch(client, job.id)) {
    switch (answer.event) {
      case 'snapshot':
        job = answer.snapshot.job;
        for (const run of answer.snapshot.runs) runs.set(run.node, run);
        break;
      case 'job_changed':
        job = answer.job_changed.job;
        break;
      case 'run_changed':
        runs.set(answer.run_changed.run.node, answer.run_changed.run);
        break;
      case 'output':
        lines.take(answer.output.node, answer.output.chunk.stream, answer.output.chunk.data);
        break;
    }
  }
  lines.finish();

  const word = (name, prefix) => name.slice(prefix.length).toLowerCase();
  for (const [node, run] of [...runs].sort(([a], [b]) => (a < b ? -1 : 1))) {
    // An optional field that was not sent has no name in its oneof.
    const code = run._exit_code ? `, exit code ${run.exit_code}` : '';
    console.log(`${node}: ${word(run.state, 'RUN_STATE_')}${code}`);
  }
  console.log(`job ${word(job.state, 'JOB_STATE_')}`);
  return runs.size > 0 && [...runs.values()].every((run) => run.state === 'RUN_STATE_SUCCEEDED');
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    server: { type: 'string' },
    credentials: { type: 'string' },
    proto: { type: 'string', default: fileURLToPath(new URL('../../proto', import.meta.url)) },
  },
});
const [command, ...nodes] = positionals;
if (!values.server || !values.credentials || nodes.length === 0) {
  console.error('usage: node run-job.js --server HOST:PORT --credentials DIRECTORY COMMAND NODE...');
  process.exit(2);
}
const client = openClient(values.server, values.credentials, values.proto);
try {
  process.exitCode = (await runJob(client, command, nodes)) ? 0 : 1;
} catch (error) {
  if (error.code === undefined) throw error;
  console.error(`${grpc.status[error.code]}: ${error.details}`);
  process.exitCode = 2;
} finally {
  client.close();
}
