// node-postgres and its pool, in one case of test/clients/try.

const { Client, Pool } = require('pg');

const kase = process.argv[2];
const options = { host: '127.0.0.1', port: process.env.PGPORT, user: 'bench', database: 'postgres' };
if (kase === 'impatient') options.connectionTimeoutMillis = 2000;

function report(text) {
    console.log('    ' + text.replace(/\n/g, '\n        '));
}

async function attempt(what, action) {
    const began = process.hrtime.bigint();
    let result;
    try {
        result = `ok: ${await action()}`;
    } catch (error) {
        result = `${error.name}, code ${error.code}, severity ${error.severity}\n${error.message}\ndetail ${error.detail}\nhint ${error.hint}`;
    }
    report(`${what}: after ${(Number(process.hrtime.bigint() - began) / 1e9).toFixed(1)} s: ${result}`);
}

async function ask(client) {
    const answer = await client.query("SELECT current_setting('cluster_name') AS name");
    return answer.rows[0].name;
}

async function connections() {
    await attempt('Client', async () => {
        const client = new Client(options);
        client.on('error', () => {});
        await client.connect();
        const name = await ask(client);
        await client.end();
        return name;
    });
    const pool = new Pool({ ...options, max: 2 });
    pool.on('error', (error) => report(`pool 'error': ${error.message}`));
    await attempt('Pool.query', () => ask(pool));
    await attempt('Pool.query again', () => ask(pool));
    report(`pool: ${pool.totalCount} in all, ${pool.idleCount} idle`);
    await pool.end();
}

async function transactions() {
    const pool = new Pool({ ...options, max: 1 });
    pool.on('error', (error) => report(`pool 'error': ${error.message}`));
    const client = await pool.connect();
    client.on('error', (error) => report(`client 'error': ${error.message}`));
    const pid = client.processID;
    await attempt('BEGIN', () => client.query('BEGIN'));
    await attempt('the next query on that client', () => client.query('SELECT 1'));
    client.release();
    report(`pool after release(): ${pool.totalCount} in all, ${pool.idleCount} idle`);
    await attempt('the next pool.connect()', async () => {
        const next = await pool.connect();
        const same = next.processID === pid ? 'the same' : 'another';
        next.release();
        return `${same} connection`;
    });
    await attempt('Pool.query, autocommit', () => ask(pool));
    report(`pool: ${pool.totalCount} in all, ${pool.idleCount} idle`);
    await pool.end();
}

(kase === 'error' || kase === 'fatal' ? transactions() : connections()).catch((error) => report(`not caught: ${error.message}`));
