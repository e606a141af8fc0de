# Coalescing: statements that go through a worker answer as they always did; what is declined or given back runs as always.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = gated_node(
	'coalesce',
	'max_connections' => 60,
	'weir.max_active' => 0,
	'deadlock_timeout' => '10s');
my $admin = admin_of($node);
$admin->query($_) foreach
  'CREATE TABLE counters (id int PRIMARY KEY, v int NOT NULL CHECK (v < 1000000), name text UNIQUE, note varchar(5), n numeric DEFAULT 0)',
  q{INSERT INTO counters SELECT g, 0, 'name ' || g FROM generate_series(1, 100) g},
  'CREATE TABLE parents (id int PRIMARY KEY)', 'INSERT INTO parents VALUES (1)',
  q{CREATE DOMAIN short AS text CHECK (length(VALUE) < 10)},
  'CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, parent int REFERENCES parents, what short,
	at timestamptz NOT NULL DEFAULT now(), twice int GENERATED ALWAYS AS (length(what) * 2) STORED, tags text[], key int UNIQUE CHECK (key > 0))',
  'CREATE TABLE held (id int PRIMARY KEY, v int)', 'INSERT INTO held VALUES (1, 0)',
  q{SELECT weir.coalesce_table(t) FROM unnest('{counters,events,held}'::regclass[]) t},
  'GRANT ALL ON ALL TABLES IN SCHEMA public TO app', 'GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app';

# A counter of weir.stat_coalesce, of a table or of all of them.
sub coalesced
{
	my ($column, $table) = @_;
	return $admin->value("SELECT coalesce(sum(($column)::bigint), 0) FROM weir.stat_coalesce"
		  . ($table ? " WHERE relation = '$table'::regclass" : ''));
}

# Two sessions that do the same: through a worker, and as without pg_weir.
my $app = app_of($node);
my $plain = app_of($node);
$plain->query('SET weir.coalesce = off');

# A worker is there, and so many write at once that it is worth its while: they wait for a row that $holder has.
my $holder = admin_of($node);
my @company = map { app_of($node) } 1 .. 14;
sub gather
{
	$holder->query('BEGIN');
	$holder->query('UPDATE held SET v = 0 WHERE id = 1');
	poll_until(
		'a worker',
		sub {
			$app->query('UPDATE counters SET v = v WHERE id = 99');
			$admin->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer'") == 1;
		});
	$_->send('UPDATE held SET v = v + 1 WHERE id = 1') foreach @company;
	poll_until('company',
		sub { $admin->value("SELECT count(*) FROM pg_locks WHERE NOT granted") >= @company });
	return;
}
gather();
is(coalesced(q{not_executed_by_reason ->> 'row locked'}, 'held') > 0, 1, 'who waits for a row that is locked waits in its own session');

# A test: through the worker, or not, as said; the same answer as without it.
sub same
{
	my ($sql, $through, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$name //= $sql;
	my $before = coalesced('requests');
	my $answer = $app->send($sql)->answer;
	my $taken = coalesced('requests') - $before;
	my $expected = $plain->send($sql)->answer;
	is_deeply(
		{ map { $_ => $answer->{$_} } qw(tag code message detail hint) },
		{ map { $_ => $expected->{$_} } qw(tag code message detail hint) },
		"same answer: $name");
	return is($taken, $through, ($through ? 'through a worker' : 'not through a worker') . ": $name")
	  || diag(map { join(' ', map { $_ // '' } @$_) . "\n" }
		  @{ $admin->query('SELECT relation, declined_by_reason, not_executed_by_reason FROM weir.stat_coalesce') });
}

# ---- UPDATE and DELETE

same('UPDATE counters SET v = v + 1 WHERE id = 1', 1);
is($admin->value('SELECT v FROM counters WHERE id = 1'), 2, 'both were applied');
same(q{UPDATE counters SET v = v + 1, note = 'x' WHERE id = 2 AND v >= 0}, 1);
same('UPDATE counters SET v = v + 1 WHERE id = 2 AND v < 0', 1, 'no row matches');
same('UPDATE counters SET v = v + 1 WHERE id = 12345', 1, 'no such row');
same(q{UPDATE counters SET v = v + 1 WHERE name = 'name 3'}, 1, 'by another unique key');
same('UPDATE counters SET v = v + 1 WHERE id = 4::bigint', 1, 'by a value of another type');
same('UPDATE counters SET v = v + 1 WHERE 5 = id', 1);
same('UPDATE counters SET v = CASE WHEN v > 3 THEN 0 ELSE v + 1 END, n = n * 2 + 1.5, note = upper(left(name, 2)) WHERE id = 6', 1);
same('UPDATE counters SET note = to_char(now(), $$YYYY$$) WHERE id = 7', 0, 'a function that depends on settings');
same('UPDATE counters SET note = current_user WHERE id = 7', 1, 'what only the session knows');
same('DELETE FROM counters WHERE id = 54321', 1, 'DELETE of no row');
my $before = coalesced('requests');
is($app->send('DELETE FROM counters WHERE id = 100')->answer->{tag}, 'DELETE 1', 'DELETE');
is(coalesced('requests') - $before, 1, 'through a worker');
is($admin->value('SELECT count(*) FROM counters WHERE id = 100'), 0, 'the row is gone');

same('UPDATE counters SET v = v + 1', 0, 'all rows');
same('UPDATE counters SET v = v + 1 WHERE id = 1 OR id = 2', 0);
same('UPDATE counters SET v = v + 1 WHERE id = NULL', 0);
same('UPDATE counters SET id = id WHERE id = 1', 0, 'a column of a unique index');
same('UPDATE counters SET v = (SELECT 1) WHERE id = 1', 0, 'a subquery');
same('UPDATE counters SET v = v + 1 FROM parents WHERE counters.id = 1', 0, 'a join');
same('UPDATE counters SET v = floor(random()) WHERE id = 1', 0, 'a volatile function');
same('UPDATE counters SET v = v + 1 WHERE id = 1 RETURNING v * 0', 0, 'RETURNING of an expression');
same('UPDATE counters SET v = v + 1 WHERE id = 1 RETURNING ctid', 0, 'RETURNING of a system column');
foreach ([ 'UPDATE counters SET v = v + 1 WHERE id = 30 RETURNING v, note, name', 'UPDATE 1', '3 - name 30' ],
	[ 'UPDATE counters SET note = note || 1 WHERE name = $$name 30$$ RETURNING *', 'UPDATE 1', '30 3 name 30 - 0' ],
	[ 'UPDATE counters SET v = v + 1 WHERE id = -1 RETURNING v', 'UPDATE 0' ],
	[ 'DELETE FROM counters WHERE id = 30 RETURNING id, name', 'DELETE 1', '30 name 30' ])
{
	my ($sql, @expected) = @$_;
	my $taken = coalesced('requests');
	my $answer = $app->send($sql)->answer;
	is_deeply([ $answer->{tag}, map { join ' ', map { $_ // '-' } @$_ } @{ $answer->{rows} } ], \@expected, $sql);
	is(coalesced('requests') - $taken, 1, 'through a worker');
}

# Errors are those of the session itself.
same('UPDATE counters SET v = v + 2000000 WHERE id = 1', 0, 'CHECK');
same('UPDATE counters SET v = NULL WHERE id = 1', 0, 'NOT NULL');
same('UPDATE counters SET v = v / (v - v) WHERE id = 1', 0, 'an error in an expression');
same(q{UPDATE counters SET note = 'far too long' WHERE id = 1}, 0, 'too long for its column');
is(coalesced(q{not_executed_by_reason ->> 'error'}) > 2, 1, 'these were given back');

# ---- INSERT

# The first nextval(), like each 33rd, gets the session's transaction an xid, and then the domain might have written something.
$plain->query('INSERT INTO events DEFAULT VALUES');
same(q{INSERT INTO events (parent, what) VALUES (1, 'one')}, 1);
same(q{INSERT INTO events (parent, what, tags) VALUES (1, 'one', '{a,b}'), (1, 'two', NULL), (NULL, NULL, '{}')}, 1, 'three rows');
same(q{INSERT INTO events DEFAULT VALUES}, 1);
is($admin->value('SELECT count(*) FROM events'), 11, 'all rows are there');
is($admin->value('SELECT count(DISTINCT id) FROM events'), 11, 'each with an identity');
is($admin->value(q{SELECT count(*) FROM events WHERE what = 'one' AND twice = 6 AND at > now() - interval '1 h'}), 4, 'generated columns and defaults');
$before = coalesced('requests');
my $returned = $app->send(q{INSERT INTO events (what, key) VALUES ('r', 7), ('s', 8) RETURNING key, what, id})->answer;
is_deeply([ map { "@$_[0, 1]" } @{ $returned->{rows} } ], [ '7 r', '8 s' ], 'RETURNING');
is($returned->{tag}, 'INSERT 0 2', 'its tag');
is(coalesced('requests') - $before, 1, 'through a worker');
is($app->value('SELECT lastval()'), $returned->{rows}[1][2], 'lastval()');

same(q{INSERT INTO events (key) VALUES (7)}, 0, 'unique violation');
same(q{INSERT INTO events (key) VALUES (1000), (1000)}, 0, 'unique violation within a statement');
same(q{INSERT INTO events (parent) VALUES (2)}, 0, 'foreign key');
like($app->send('INSERT INTO events (key) VALUES (0)')->answer->{message}, qr/violates check constraint "events_key_check"/, 'CHECK');
same(q{INSERT INTO events (what) VALUES ('far too long a text')}, 0, 'domain');
same(q{INSERT INTO events (what) SELECT 'x'}, 1, 'SELECT of constants is VALUES');
same(q{INSERT INTO events (what) SELECT 'x' FROM parents}, 0, 'SELECT');
same(q{INSERT INTO events (key) VALUES (7) ON CONFLICT DO NOTHING}, 1, 'DO NOTHING, and nothing is done');
same(q{INSERT INTO events (key) VALUES (7), (7) ON CONFLICT (key) DO NOTHING}, 1, 'DO NOTHING on an index');
is($app->send('INSERT INTO events (key) VALUES (500), (7), (501), (500) ON CONFLICT (key) DO NOTHING')->answer->{tag}, 'INSERT 0 2', 'DO NOTHING of some rows');
is($admin->value('SELECT count(*) FROM events WHERE key IN (500, 501)'), 2, 'the others are there');
same(q{INSERT INTO events (id, key) OVERRIDING SYSTEM VALUE VALUES (1, 502) ON CONFLICT (key) DO NOTHING}, 0, 'DO NOTHING, but on another index');
same(q{INSERT INTO events (key) VALUES (7) ON CONFLICT (key) DO UPDATE SET what = 'u'}, 0, 'DO UPDATE');
same(q{INSERT INTO events (tags) VALUES (array_fill('x'::text, '{100000}'))}, 0, 'too large');
is($admin->value('SELECT count(*) FROM events WHERE array_length(tags, 1) = 100000'), 2, 'and written all the same');

# ---- transactions and the protocol

$app->query('BEGIN');
$before = coalesced('requests');
is($app->send('UPDATE counters SET v = v + 1 WHERE id = 8')->answer->{tag}, 'UPDATE 1', 'in a transaction block');
is(coalesced('requests') - $before, 0, 'not through a worker');
$app->query('ROLLBACK');
is($admin->value('SELECT v FROM counters WHERE id = 8'), 2, 'rolled back');
$before = coalesced('requests');
$app->send('UPDATE counters SET v = v + 1 WHERE id = 10; SELECT 1 / 0')->answer;
is(coalesced('requests') - $before, 0, 'several statements in one string');

# Messages in one packet, as drivers send them.
sub bind_message { my ($name, @values) = @_; return (B => "\0$name\0" . pack('nn(N/a*)*', 0, scalar @values, @values) . pack('n', 0)) }
sub packet
{
	my @messages = @_;
	my $bytes = '';
	while (my ($type, $body) = splice @messages, 0, 2) { $bytes .= $type . pack('N', length($body) + 4) . $body }
	return $app->_write($bytes);
}
my @execute = (E => "\0" . pack('N', 0));
my @sync = (S => '');

$app->parse('u', 'UPDATE counters SET v = v + $2 WHERE id = $1');
$app->parse('i', 'INSERT INTO events (what, key) VALUES ($1, $2)');
$before = coalesced('requests');
is(packet(bind_message('u', 11, 5), @execute, @sync)->answer->{tag}, 'UPDATE 1', 'extended protocol') foreach 1 .. 8;
is(packet(bind_message('i', 'ext', 77), @execute, @sync)->answer->{tag}, 'INSERT 0 1', 'extended protocol, INSERT');
is(coalesced('requests') - $before, 9, 'through a worker');
is(packet(bind_message('i', 'ext', 77), @execute, @sync)->answer->{code}, '23505', 'extended protocol, unique violation');
$before = coalesced('requests');
my $v = $admin->value('SELECT v FROM counters WHERE id = 11');
is(packet(bind_message('u', 11, 5), @execute, bind_message('u', 11, 10000000), @execute, @sync)->answer->{code}, '23514', 'a pipeline fails with its second statement');
is($admin->value('SELECT v FROM counters WHERE id = 11'), $v, 'and as a whole');
is(coalesced('requests') - $before, 0, 'not through a worker');
$app->query('SET default_transaction_isolation = serializable');
same('UPDATE counters SET v = v + 1 WHERE id = 12', 0, 'above READ COMMITTED');
$app->query('RESET default_transaction_isolation');
$app->query('SET synchronous_commit = off');
same('UPDATE counters SET v = v + 1 WHERE id = 12', 0, 'synchronous_commit = off');
$app->query('RESET synchronous_commit');
$app->query('DO $$ BEGIN UPDATE counters SET v = v + 1 WHERE id = 13; END $$');
is(coalesced(q{declined_by_reason ->> 'nested'}) > 0, 1, 'nested: declined, and counted');

# ---- why, beforehand

sub explained
{
	 return join ' ', map { $_ // '-' } @{ $app->query("SELECT relation, coalesced, reason FROM weir.coalesce_explain(\$sql\$$_[0]\$sql\$)")->[0] };
}
is(explained(@$_[0]), $_->[1], "explained: $_->[0]") foreach
  [ 'UPDATE counters SET v = v + $2 WHERE id = $1', 'counters t -' ], [ 'DELETE FROM counters WHERE id = 5', 'counters t -' ],
  [ 'UPDATE counters SET v = v + 1', 'counters f key' ], [ 'UPDATE counters SET id = id WHERE id = 1', 'counters f column' ],
  [ 'INSERT INTO events (what, key) VALUES ($1, $2)', 'events t -' ], [ 'INSERT INTO events (what) SELECT $$x$$ FROM parents', 'events f statement' ],
  [ 'INSERT INTO events (key) VALUES (1) ON CONFLICT (key) DO UPDATE SET what = $$u$$', 'events f on conflict' ],
  [ 'UPDATE counters SET v = floor(random()) WHERE id = 1', 'counters f expression' ], [ 'INSERT INTO parents VALUES (1000)', 'parents f not opted in' ],
  [ 'SELECT 1', '- f statement' ], [ 'VACUUM', '- f statement' ];
is($admin->value('SELECT count(*) FROM counters WHERE id = 5'), 1, 'nothing was executed');
is($app->send($_->[0])->answer->{code}, $_->[1], "refused: $_->[0]") foreach
  [ q{SELECT weir.coalesce_explain('SELECT 1; SELECT 2')}, '42601' ], [ q{SELECT weir.coalesce_explain('UPDATE nowhere SET v = 1')}, '42P01' ],
  [ q{SELECT weir.coalesce_explain('DELETE FROM weir.coalesced_table WHERE relation = 5')}, '42501' ];
$app->query($_->[0]), is(explained('UPDATE counters SET v = 1 WHERE id = 1'), "counters f $_->[1]", "explained: $_->[0]"), $app->query($_->[2]) foreach
  [ 'BEGIN', 'transaction block', 'ROLLBACK' ], [ 'SET synchronous_commit = off', 'synchronous_commit', 'RESET synchronous_commit' ],
  [ 'SET weir.coalesce = off', 'off', 'RESET weir.coalesce' ];

# ---- the table changes

$admin->query('ALTER TABLE counters ADD COLUMN later int DEFAULT 5');
same('UPDATE counters SET v = v + 1, later = later + 1 WHERE id = 14', 1, 'a new column');
$admin->query('ALTER TABLE counters DROP COLUMN n');
same('UPDATE counters SET v = v + 1 WHERE id = 14', 1, 'a column less');
$admin->query('CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$');
$admin->query('CREATE TRIGGER t BEFORE UPDATE ON counters FOR EACH ROW EXECUTE FUNCTION f()');
same('UPDATE counters SET v = v + 1 WHERE id = 14', 0, 'a trigger');
$admin->query('DROP TRIGGER t ON counters');
$admin->query('ALTER TABLE counters ENABLE ROW LEVEL SECURITY');
same('UPDATE counters SET v = v + 1 WHERE id = 14', 0, 'row-level security');
$admin->query('ALTER TABLE counters DISABLE ROW LEVEL SECURITY');
$admin->query('REVOKE UPDATE ON counters FROM app');
same('UPDATE counters SET v = v + 1 WHERE id = 14', 0, 'no privilege');
$admin->query('GRANT UPDATE (v) ON counters TO app');
same('UPDATE counters SET v = v + 1 WHERE id = 14', 1, 'privilege on the column');
same('UPDATE counters SET later = 1 WHERE id = 14', 0, 'no privilege on the column');
$admin->query('GRANT ALL ON counters TO app');
$admin->query(q{CREATE POLICY p ON events FOR INSERT WITH CHECK (what = current_setting('my.what', true))});
$admin->query('ALTER TABLE events ENABLE ROW LEVEL SECURITY');
$_->query(q{SET my.what = 'mine'}) foreach $app, $plain;
same(q{INSERT INTO events (what) VALUES ('mine')}, 1, 'a row that the policy allows');
same(q{INSERT INTO events (what) VALUES ('yours')}, 0, 'a row that the policy forbids');
$admin->query('SELECT weir.uncoalesce_table($$events$$)');
same(q{INSERT INTO events (what) VALUES ('mine')}, 0, 'opted out');
$admin->query('SELECT weir.coalesce_table($$events$$)');
same(q{INSERT INTO events (what) VALUES ('mine')}, 1, 'opted in again');

# ---- leaving

my $worker = $admin->value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer'});
kill 'STOP', $worker;
$v = $admin->value('SELECT v FROM counters WHERE id = 20');
$app->send('UPDATE counters SET v = v + 1 WHERE id = 20');
poll_until('it is queued', sub { $admin->value("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $app->{pid}") eq 'Extension' });
$admin->query("SELECT pg_cancel_backend($app->{pid})");
is($app->answer($PgWeir::at_once_s)->{code}, '57014', 'cancelled while queued');
my $began = time;
is($app->send('UPDATE counters SET v = v + 10 WHERE id = 20')->answer->{tag}, 'UPDATE 1', 'a worker that is stuck: the session does it itself');
kill 'CONT', $worker;
is($admin->value('SELECT v FROM counters WHERE id = 20'), $v + 10, 'what was cancelled was not written');
poll_until('the worker is sent something again',
	sub { my $taken = coalesced('requests'); $app->query('UPDATE counters SET v = v WHERE id = 99'); coalesced('requests') > $taken });
same('UPDATE counters SET v = v + 1 WHERE id = 20', 1, 'the worker is back');

$admin->query("SELECT pg_terminate_backend($worker)");
poll_until('the worker is gone', sub { !$admin->value("SELECT count(*) FROM pg_stat_activity WHERE pid = $worker") });
is($app->send('UPDATE counters SET v = v + 1 WHERE id = 21')->answer->{tag}, 'UPDATE 1', 'without a worker');
poll_until('another worker',
	sub {
		$app->query('UPDATE counters SET v = v WHERE id = 21');
		$admin->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer' AND query = 'coalescing'") == 1;
	});
same('UPDATE counters SET v = v + 1 WHERE id = 21', 1, 'another worker has come');

# ---- nextval() has got a transaction an xid: every 32nd does

{
	$admin->query($_) foreach 'CREATE TABLE numbered (id bigint GENERATED ALWAYS AS IDENTITY, v int)',
	  q{SELECT weir.coalesce_table('numbered')}, 'GRANT ALL ON numbered TO app';
	my $walwriter = $admin->value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'});
	my $before = coalesced('requests', 'numbered');
	my ($commits, $flushed) = (0, 0);
	kill 'STOP', $walwriter;
	foreach (1 .. 160)
	{
		$app->query('INSERT INTO numbered (v) VALUES (1)');
		my ($behind, $durable) = @{
			$app->query('SELECT weir.last_commit_lsn() < pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn() = pg_current_wal_insert_lsn()')->[0]
		};
		$commits++ if $behind eq 't';
		$flushed++ if $durable eq 't';
	}
	kill 'CONT', $walwriter;
	is(coalesced('requests', 'numbered') - $before, 160, 'numbered rows go through the worker');
	cmp_ok($commits, '>=', 4, 'a commit of which a worker has written the rows is nothing to wait for on a standby');
	cmp_ok($flushed, '<=', 156, '... nor to flush');
	$admin->query('DROP TABLE numbered');
}

# ---- hot rows, with ordinary transactions among them

$holder->query('ROLLBACK');
$_->answer foreach @company;
my $script = "$PostgreSQL::Test::Utils::tmp_check/hot.sql";
append_to_file($script, "UPDATE counters SET v = v + 1 WHERE id = 50;\n");
my @pgbench = ('pgbench', '-n', '-h', $node->host, '-p', $node->port, '-U', 'app', '-M', 'prepared', '-f', $script, '-c', 12, '-t', 150);
my $sum = $admin->value('SELECT v FROM counters WHERE id = 50');
my @runs = map {
	local $ENV{PGOPTIONS} = "-c weir.coalesce=$_";
	my ($out, $err) = ('', '');
	my $run = IPC::Run::start([ @pgbench, 'postgres' ], '>', \$out, '2>', \$err);
	[ $run, \$out, \$err ];
} qw(on off on);
foreach my $run (@runs)
{
	$run->[0]->finish;
	like(${ $run->[1] }, qr{actually processed: 1800/1800}, 'pgbench') || diag(${ $run->[2] });
}
is($admin->value('SELECT v FROM counters WHERE id = 50') - $sum, 3 * 1800, 'every increment is there once');
cmp_ok(coalesced('folded'), '>', 0, 'some were folded');

# They hold no slot, and are at work all the same: logins are paced for them.
my $output = '';
my $load = IPC::Run::start([ @pgbench[ 0 .. $#pgbench - 4 ], '-c', 24, '-T', 120, 'postgres' ], '>&', \$output);
poll_until('sessions whose statements are coalesced count as established',
	sub { $admin->value('SELECT established >= 20 FROM weir.startup_limit') eq 't' });

# Where flushes are slow, those just answered are waited for: two rounds that take turns would be 12 in each batch.
reconfigure($admin, 'fsync' => 'on', 'commit_delay' => 20_000, 'commit_siblings' => 0);
my @last = (0, 0);
poll_until(
	'rounds of clients become one',
	sub {
		my @now = map { coalesced($_, 'counters') } qw(requests batches);
		my ($requests, $batches) = map { $now[$_] - $last[$_] } 0, 1;
		return 0 if $batches < 20;
		@last = @now;
		return $requests >= 18 * $batches;
	});
cmp_ok(coalesced(q{flushed_by_reason ->> 'complete'}, 'counters'), '>', 0, 'why batches were begun is counted');
$load->kill_kill;
poll_until('each has its reason',
	sub { coalesced('(SELECT sum(n::bigint) FROM jsonb_each_text(flushed_by_reason) AS f(reason, n)) - batches') == 0 });
reconfigure($admin, 'commit_delay' => 0, 'fsync' => 'off');

# ---- databases come and go

$admin->query('CREATE DATABASE other');
my $dump = "$PostgreSQL::Test::Utils::tmp_check/dump.sql";
$node->command_ok([ 'pg_dump', '-f', $dump, '-d', $node->connstr('postgres') ], 'pg_dump');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, $node->connstr('other') ], 'restored');
is($node->safe_psql('other', 'SELECT string_agg(relation::text, $$ $$ ORDER BY relation::text) FROM weir.coalesced_table'),
	'counters events held', 'pg_dump keeps which tables have opted in');
my $other = app_of($node, database => 'other');
poll_until(
	'a worker in the other database',
	sub {
		$other->query('UPDATE counters SET v = v WHERE id = 1');
		$admin->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer' AND datname = 'other'") == 1;
	});
$other->close;
answers_at_once($admin, 'DROP DATABASE other', 'a worker does not hold up DROP DATABASE');

$node->restart;
$admin = admin_of($node);
$app = app_of($node);
poll_until(
	'a worker after a restart',
	sub {
		$app->query('UPDATE counters SET v = v WHERE id = 1');
		$admin->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer'") == 1;
	});
nothing_left($admin, 'at the end');
unlike(slurp_file($node->logfile), qr/TRAP|PANIC|was terminated by signal|snapshot .* still active|resource was not closed|leaked/, 'nothing leaked');

done_testing();
