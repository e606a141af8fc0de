# weir.submit(): what a unit does in its own session and in a worker is the same; nobody's rights or settings reach another's unit; a key
# makes it happen once, whatever is killed in between.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = gated_node(
	'submit',
	node => { allows_streaming => 1 },
	'max_connections' => 60,
	'weir.max_active' => 0,
	'weir.coalesce_lock_timeout' => '10s',
	'deadlock_timeout' => '30s',
	'restart_after_crash' => 'on',
	'fsync' => 'on');
my $admin = admin_of($node);
$admin->query($_) foreach
  'CREATE ROLE other LOGIN', 'CREATE ROLE team', 'GRANT team TO app', 'CREATE ROLE stranger',
  'GRANT EXECUTE ON FUNCTION weir.submit TO app, other, team',
  'CREATE TABLE t (id int PRIMARY KEY, n int NOT NULL DEFAULT 0 CONSTRAINT small CHECK (n < 1000), who text DEFAULT current_user)',
  'CREATE TABLE held (id int PRIMARY KEY, v int)', 'INSERT INTO held SELECT g, 0 FROM generate_series(1, 9) g',
  'CREATE TABLE seen (session int, what text)', 'CREATE TABLE secret (v int)',
  'GRANT ALL ON t, held, seen TO app, other, team';

my $began = Time::HiRes::time();

# Quotes it.
sub unit
{
	my ($sql, %options) = @_;
	my @arguments = "\$unit\$$sql\$unit\$";
	push @arguments, 'ARRAY[' . join(', ', map { defined ? "'$_'" : 'NULL' } @{ $options{params} }) . ']' if $options{params};
	push @arguments, "key => '$options{key}'" if $options{key};
	return 'SELECT weir.submit(' . join(', ', @arguments) . ')';
}

sub figure { return $admin->value("SELECT $_[0] FROM weir.stat_submit") }
sub rows_of { return join ' ', map { join '/', map { $_ // 'NULL' } @$_ } @{ $admin->query($_[0]) } }

sub is_error
{
	my ($session, $sql, $code, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $answer = $session->send($sql)->answer;
	return is($answer->{code}, $code, $name // "$code: $sql") || diag($answer->{message} // '');
}

note(sprintf '%.1f s', Time::HiRes::time() - $began);

# ---- in its own session

my $app = app_of($node);
is($app->value(unit('INSERT INTO t VALUES ($1, $2)', params => [ 1, 2 ])), 1, 'one row');
is($app->value(unit('INSERT INTO t VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n; UPDATE t SET n = n * $2',
			params => [ 1, 10 ])), 2, 'two statements, parameters of both, the sum of their rows');
is($admin->value('SELECT n FROM t'), 120, 'both were executed');
is($app->value(unit(q{INSERT INTO seen VALUES ($1, $2), (length($2), 'x;y')}, params => [ 1, undef ])), 2, 'NULL; types as the statement wants them');
is(rows_of('SELECT * FROM seen'), '1/NULL NULL/x;y', 'they are there');
is($app->value(unit('DELETE FROM seen RETURNING *')), 2, 'RETURNING is counted, not returned');
is($app->value(unit('SELECT * FROM t')), 0, 'a SELECT writes nothing');
is($app->value(q{SELECT n FROM weir.submit('UPDATE t SET n = 1') AS n}), 1, 'in FROM');
is_error($app, unit($_->[1], params => $_->[2]), $_->[0])
  foreach [ '42P02', 'INSERT INTO t VALUES ($1, $2)', ['1'] ], [ '22023', 'INSERT INTO t VALUES ($1)', [ '8', '2' ] ], [ '22023', ' ; ' ],
  [ '0A000', 'UPDATE t SET n = 5; COMMIT' ], [ '25001', 'VACUUM t' ], [ '25001', 'CREATE DATABASE d' ], [ '0A000', 'COPY t FROM STDIN' ],
  [ '22P02', 'INSERT INTO t VALUES ($1)', ['one'] ], [ '42501', 'SELECT * FROM secret' ], [ '42601', 'INSERT INTO' ],
  [ '23514', 'UPDATE t SET n = 5; UPDATE t SET n = 5000' ];
is_error($app, 'SELECT weir.submit(NULL)', '22004');
is($admin->value('SELECT n FROM t'), 1, 'a unit that fails leaves nothing');
$app->query($_) foreach 'BEGIN', unit('UPDATE t SET n = 7'), 'ROLLBACK';
is($admin->value('SELECT n FROM t'), 1, 'in a transaction block it is part of it');
$app->query('BEGIN TRANSACTION READ ONLY');
is_error($app, unit('UPDATE t SET n = 7'), '25006', 'read-only');
$app->query('ROLLBACK');
is_error($app, "SELECT weir.submit('UPDATE t SET n = 7'), 1/(SELECT count(*) FROM secret WHERE false)", '42501', 'with something else');
$admin->query('REVOKE EXECUTE ON FUNCTION weir.submit FROM other');
is_error(app_of($node, user => 'other'), unit('SELECT 1'), '42501', 'nobody may call it who was not granted that');
$admin->query('GRANT EXECUTE ON FUNCTION weir.submit TO other');
is(figure('units'), 0, 'no worker had a part in it');

note(sprintf '%.1f s', Time::HiRes::time() - $began);

# ---- a worker

my ($holder, @company);

# Sessions that wait in units of their own, so that it is worth a worker's while; and the worker.
sub gather
{
	my ($user) = @_;
	$user //= 'app';
	if (!$holder)
	{
		$holder = admin_of($node);
		$holder->query('BEGIN');
		$holder->query('UPDATE held SET v = 1 WHERE id = 1');
	}
	my @sessions = map { app_of($node, user => $user) } 1 .. 9;
	$_->send(unit('UPDATE held SET v = v + 1 WHERE id = 1')) foreach @sessions;
	push @company, @sessions;
	poll_until('company', sub {
		$admin->value("SELECT count(*) FROM pg_stat_activity WHERE usename = '$user' AND state = 'active' AND query LIKE '%held%'") >= @sessions });
	my $session = app_of($node, user => $user);
	await_worker($session);
	return $session;
}

sub workers
{
	my ($condition) = @_;
	return $admin->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_weir submitter' AND " . ($condition // 'true'));
}

sub await_worker
{
	my ($session) = @_;
	my $before = figure('units');
	poll_until('a worker serves', sub { $session->query(unit('SELECT 1')); figure('units') > $before });
	return;
}

# Calls $f while the worker waits for a row that $holder has, so that what it sends is one batch; then lets it go.
sub while_worker_waits
{
	my ($session, $f) = @_;
	my $locker = admin_of($node);
	$locker->query('BEGIN');
	$locker->query('UPDATE held SET v = 1 WHERE id = 2');
	$session->send(unit('UPDATE held SET v = v + 1 WHERE id = 2'));
	poll_until('the worker waits', sub { workers("wait_event_type = 'Lock'") == 1 });
	$f->($locker);
	$locker->query('COMMIT');
	return $session->answer;
}

# Sends to sessions, and returns when all requests wait for the worker.
sub send_all
{
	my ($sessions, @units) = @_;
	$sessions->[$_]->send($units[$_]) foreach 0 .. $#units;
	my $pids = join ', ', map { $_->pid } @$sessions[ 0 .. $#units ];
	poll_until('they wait', sub {
		$admin->value("SELECT count(*) FROM pg_stat_activity WHERE pid IN ($pids) AND wait_event_type = 'Extension'") == @units });
	return;
}

$app = gather();
is($app->value(unit('INSERT INTO t VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n; UPDATE t SET n = n * $2',
			params => [ 1, 10 ])), 2, 'a worker: rows of both statements');
is($admin->value('SELECT n FROM t'), 110, 'and both were executed');
is(workers(q{usename = 'app' AND datname = 'postgres'}), 1, 'it is a session of its role');

# What a worker executes needs no slot of the transaction gate; what its session executes after all does.
$admin->query('CREATE SEQUENCE probe; GRANT ALL ON SEQUENCE probe TO app');
my @waiters = map { app_of($node) } 1 .. 3;
$_->query(unit('SELECT 1')) foreach @waiters;
reconfigure($admin, 'weir.max_active' => 1);
answers_at_once($app, unit('UPDATE t SET n = n'), 'all slots are taken, and a worker executes it');
foreach my $waits ('SELECT count(*) FROM t', unit('UPDATE t SET n = 5000'), q{SELECT weir.submit('SELECT ' || nextval('probe'))})
{
	my $session = shift @waiters;
	$session->send($waits);
	poll_until("waits: $waits", sub { $session->state($admin) eq 'waiting' });
	$admin->query('SELECT pg_cancel_backend(' . $session->pid . ')');
	is($session->answer->{code}, '57014', "waits for a slot: $waits");
}
is($admin->value('SELECT is_called FROM probe'), 'f', 'what its arguments call waits, too');
reconfigure($admin, 'weir.max_active' => 0);

my @apps = map { app_of($node) } 1 .. 12;
$admin->query('DELETE FROM t');
my $before = figure('units');
my $batches = figure('batches');
my $answer = while_worker_waits($app, sub { send_all(\@apps, map { unit("INSERT INTO t VALUES ($_)") } 1 .. 12) });
is($answer->{rows}[0][0], 1, 'who waited for a lock got it');
is(join(' ', map { $_->answer->{rows}[0][0] } @apps), join(' ', (1) x 12), 'twelve units, twelve answers');
is(figure('units') - $before, 13, 'executed by the worker');
is(figure('batches') - $batches, 2, 'the twelve share a transaction');

# Errors are each unit's own.
$admin->query('DELETE FROM t WHERE id > 6');
while_worker_waits($app, sub {
	send_all(\@apps, map { unit("INSERT INTO t VALUES ($_)") } 4 .. 15) });
my @answers = map { $_->answer } @apps;
is(join(' ', map { $_->{code} || 'ok' } @answers), join(' ', ('23505') x 3, ('ok') x 9), 'three of twelve violate a constraint');
is($answers[0]{constraint}, 't_pkey', 'constraint');
is($answers[0]{detail}, 'Key (id)=(4) already exists.', 'detail');
is($admin->value('SELECT count(*) FROM t'), 15, 'the others are there, once');
is_error($app, unit($_->[1], params => $_->[2]), $_->[0], "worker: $_->[0]")
  foreach [ '42P02', 'INSERT INTO t VALUES ($1, $2)', ['1'] ], [ '0A000', 'COMMIT' ], [ '25001', 'VACUUM t' ], [ '42601', 'INSERT INTO' ],
  [ '42501', 'SELECT * FROM secret' ], [ '23514', 'UPDATE t SET n = 5; UPDATE t SET n = 5000' ];

# A deferred constraint is checked in its unit.
$admin->query('CREATE TABLE child (t int REFERENCES t DEFERRABLE INITIALLY DEFERRED)');
$admin->query('GRANT ALL ON child TO app');
while_worker_waits($app, sub {
	send_all(\@apps, unit('INSERT INTO child VALUES (1)'), unit('INSERT INTO child VALUES (99)'),
		unit('INSERT INTO child VALUES (98); INSERT INTO t VALUES (98)')) });
is(join(' ', map { $apps[$_]->answer->{code} || 'ok' } 0 .. 2), 'ok 23503 ok', 'deferred constraints');
is(figure(q{coalesce(given_back_by_reason->>'batch mate', '0')}), 0, 'none of them harmed the others');
$admin->query('DROP TABLE child');

note(sprintf '%.1f s', Time::HiRes::time() - $began);

# ---- whose rights, whose settings

$admin->query($_) foreach
  q{CREATE FUNCTION keep(what text) RETURNS void LANGUAGE plpgsql AS 'BEGIN EXECUTE what; END'},
  'CREATE POLICY own ON seen USING (true) WITH CHECK (what = current_setting($$app.tenant$$, true))', 'ALTER TABLE t ADD at text',
  'CREATE SCHEMA mine AUTHORIZATION app', 'CREATE TABLE mine.t (id int, who text DEFAULT current_user)', 'ALTER TABLE mine.t OWNER TO app';
$app = app_of($node);
$before = figure('units');
my $state = q{current_user || ' ' || session_user || ' ' || current_setting('datestyle') || ' ' || current_setting('timezone') || ' '
	|| coalesce(current_setting('app.tenant', true), 'none')};
$apps[0]->query($_) foreach "SET datestyle = 'SQL, DMY'", "SET timezone = 'Asia/Tokyo'", "SET app.tenant = 'one'";
$apps[1]->query($_) foreach 'SET ROLE team', "SET app.tenant = 'two'";
$apps[2]->query("SET search_path = mine, public");
$admin->query('DELETE FROM t');
while_worker_waits($app, sub {
	send_all(\@apps, (map { unit("INSERT INTO t (id, at) SELECT $_, $state") } 0 .. 1), unit('INSERT INTO t VALUES (7)'),
		unit("INSERT INTO t (id, at) SELECT 3, $state")) });
$_->answer foreach @apps[ 0 .. 3 ];
is($admin->value('SELECT at FROM t WHERE id = 0'), 'app app SQL, DMY Asia/Tokyo one', 'settings are the session\'s');
like($admin->value('SELECT at FROM t WHERE id = 1'), qr/^team app ISO.* two$/, 'and its role');
is($admin->value('SELECT who FROM t WHERE id = 1'), 'team', 'SET ROLE: current_user');
is(rows_of('SELECT * FROM mine.t'), '7/app', 'and its search_path');
like($admin->value('SELECT at FROM t WHERE id = 3'), qr/^app app ISO.* none$/, 'nothing is left of the others for the next');
# A session that never set it reads NULL; the worker, from now on, ''. It gives back the units of such sessions.
my $fresh = app_of($node);
$fresh->query(unit("INSERT INTO t (id, at) SELECT 4, $state"));
like($admin->value('DELETE FROM t WHERE id = 4 RETURNING at'), qr/ none$/, 'nor for one that comes later');
cmp_ok(figure(q{given_back_by_reason->>'settings'}), '>=', 1, 'what a worker cannot be like it does not execute');
$_->query("SET app.tenant = ''") foreach @apps[ 4 .. $#apps ];
# These may have been given back, and then are not tried for a while.
@apps[ 2 .. 3 ] = map { app_of($node, options => '-c app.tenant=') } 2 .. 3;
is(rows_of('SELECT count(*) FROM t'), 3, 'each where it belongs');
$admin->query('ALTER TABLE seen ENABLE ROW LEVEL SECURITY');
is($apps[0]->value(unit(q{INSERT INTO seen VALUES (1, 'one')})), 1, 'row-level security by a setting: allowed');
is_error($apps[0], unit(q{INSERT INTO seen VALUES (1, 'two')}), '42501', 'row-level security by a setting: refused');
is($apps[0]->value(unit(q{SELECT keep('SET ROLE team'); INSERT INTO t (id, at) SELECT 20, current_user})), 1, 'a unit may SET ROLE where its session may');
is($admin->value('SELECT at FROM t WHERE id = 20'), 'team', 'to the role it is a member of');
is_error($apps[0], unit(q{SELECT keep('SET ROLE stranger')}), '42501', 'but no further');
is_error($apps[0], unit(q{SELECT keep('SET SESSION AUTHORIZATION postgres')}), '42501', 'nor become somebody else');
my $superuser = scalar getpwuid($>);
is_error($apps[0], unit(qq{SELECT keep('SET ROLE "$superuser"')}), '42501', 'nor the superuser');
$apps[0]->query(unit("SELECT keep(\$\$$_\$\$)"))
  foreach 'SET ROLE team', 'PREPARE p AS SELECT 1', "SET timezone = 'Asia/Tokyo'", 'DECLARE k CURSOR WITH HOLD FOR SELECT 1', 'SELECT pg_advisory_lock(77)';
poll_until('no lock is left', sub { $admin->value(q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77}) == 0 });
my $left = q{INSERT INTO t (id, at) SELECT 30, current_user || (SELECT count(*) FROM pg_prepared_statements) || (SELECT count(*) FROM pg_cursors)
	|| (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 77) || current_setting('timezone')};
while_worker_waits($apps[5], sub { send_all([ $apps[4] ], unit($left)) });
$apps[4]->answer;
like($admin->value('SELECT at FROM t WHERE id = 30'), qr/^app000(?!Asia)/, 'role, prepared statement, cursor, lock and setting do not outlive their batch');
cmp_ok(figure('units') - $before, '>=', 12, 'all that by a worker');

# An error that is only the worker's must not be caught by the unit's own code either.
$admin->query($_) foreach 'CREATE SEQUENCE numbers', 'GRANT ALL ON SEQUENCE numbers TO app',
  q{CREATE FUNCTION careful() RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN currval($$numbers$$); EXCEPTION WHEN OTHERS THEN RETURN $$none$$; END'};
$before = figure(q{given_back_by_reason->>'error'});
$apps[5]->query(q{SELECT nextval('numbers')});
$apps[5]->query(unit('INSERT INTO t (id, at) SELECT 32, careful()'));
is($admin->value('SELECT at FROM t WHERE id = 32'), 1, 'a unit that catches an error is executed by its session');
cmp_ok(figure(q{given_back_by_reason->>'error'}), '>', $before, 'after a worker had tried it');

# A plan that is kept belongs to who made it, and to his search_path: the types of its parameters may be others for others.
$admin->query($_) foreach 'CREATE SCHEMA team AUTHORIZATION team', map { ("CREATE TABLE $_", 'GRANT ALL ON ' . (split)[0] . ' TO app, team') }
  'kind (v int)', 'team.kind (v text)', 'mine.kind (v text)';
$apps[2]->query('SET search_path = mine, public');
$before = figure('units');
$_->query(unit('INSERT INTO kind VALUES ($1)', params => ['007'])) foreach @apps[ 5, 5, 5, 1, 2 ];
is(figure('units') - $before, 5, 'a unit that is known, for three who see three tables');
is(rows_of('SELECT (SELECT sum(v) FROM kind), (SELECT v FROM team.kind), (SELECT v FROM mine.kind)'), '21/007/007', 'to each his own');

# Nothing of a unit reaches the next one of its batch.
$admin->query('CREATE TABLE child (t int REFERENCES t DEFERRABLE); GRANT ALL ON child TO app');
while_worker_waits($apps[5], sub {
	send_all([ @apps[ 6 .. 11 ] ], map { (unit(q{SELECT keep('SET CONSTRAINTS ALL DEFERRED')}), unit("INSERT INTO child VALUES ($_); INSERT INTO t VALUES ($_)")) } 33 .. 35) });
is(join(' ', map { $_->answer->{code} || 'ok' } @apps[ 6 .. 11 ]), 'ok 23503 ok 23503 ok 23503', 'SET CONSTRAINTS');
while_worker_waits($apps[5], sub {
	send_all([ @apps[ 6 .. 11 ] ], map { unit("INSERT INTO t (id, at) SELECT $_, count(*) FROM pg_prepared_statements; SELECT keep('PREPARE p$_ AS SELECT 1')") } 60 .. 65) });
$_->answer foreach @apps[ 6 .. 11 ];
is(rows_of(q{SELECT at, count(*) FROM t WHERE id >= 60 GROUP BY 1}), '0/6', 'prepared statements');
while_worker_waits($apps[5], sub {
	send_all([ @apps[ 6 .. 11 ] ], map { (unit("INSERT INTO t (id, at) SELECT $_, nextval('numbers')"), unit("INSERT INTO t (id, at) SELECT -$_, lastval()")) } 70 .. 72) });
is(join(' ', map { $_->answer->{code} || 'ok' } @apps[ 6 .. 11 ]), 'ok 55000 ok 55000 ok 55000', 'lastval()');
$admin->query('DROP TABLE child');

# A setting of a library that the worker has loaded and the session has not is no way around the right to set it.
$app = app_of($node, options => '-c app.tenant=');
$app->query(q{SET plpgsql.variable_conflict = 'use_column'});
$before = figure(q{given_back_by_reason->>'settings'});
$app->query(unit(q{INSERT INTO t (id, at) SELECT 31, current_setting('plpgsql.variable_conflict')}));
is(figure(q{given_back_by_reason->>'settings'}) - $before, 1, 'a setting that the worker may not set');

# What belongs into the session.
$before = figure('units');
$app = app_of($node, options => '-c app.tenant=');
is($app->value(unit(q{SELECT keep('CREATE TEMP TABLE scratch (v int)'); INSERT INTO scratch VALUES (1)})), 1, 'a temporary table');
is($app->value('SELECT v FROM scratch'), 1, 'is the session\'s');
$app->query('CREATE TEMP TABLE t (id int)');
$app->query(unit('INSERT INTO t VALUES (1000)'));
is($app->value('SELECT id FROM t'), 1000, 'and hides another table, as always');
$app = $apps[5];
$app->query($_) foreach 'BEGIN', unit('INSERT INTO t VALUES (80)'), 'ROLLBACK';
$answer = $app->pipeline([ unit('INSERT INTO t VALUES (80)') ], ['SELECT 1/0'])->answer;
is($answer->{code}, '22012', 'a pipeline whose second statement fails');
$app->query(q{SET default_transaction_isolation = 'repeatable read'});
$app->query(unit('INSERT INTO t (id, at) SELECT 81, pg_backend_pid()'));
$app->query('RESET default_transaction_isolation');
is(rows_of('SELECT id, at FROM t WHERE id >= 80'), '81/' . $app->pid, 'in a transaction block, in a pipeline, or above READ COMMITTED it is part of the transaction');
is($apps[5]->value(unit("SET work_mem = '5MB'")), 0, 'SET');
is($apps[5]->value('SHOW work_mem'), '5MB', 'is the session\'s');
is(figure('units'), $before, 'not by a worker');

# A security-definer function's rights end with it.
$admin->query($_) foreach
  q{CREATE FUNCTION definer() RETURNS text SECURITY DEFINER LANGUAGE plpgsql AS 'BEGIN INSERT INTO secret VALUES (1); RETURN current_user; END'};
is($apps[0]->value(unit('INSERT INTO t (id, at) SELECT 40, definer()')), 1, 'a security-definer function');
is($admin->value('SELECT at FROM t WHERE id = 40'), $superuser, 'has its owner\'s rights');
is_error($apps[0], unit('INSERT INTO secret VALUES (2)'), '42501', 'and the unit has not');
$admin->query('CREATE FUNCTION caller() RETURNS bigint SECURITY DEFINER LANGUAGE sql AS $$SELECT weir.submit(\'INSERT INTO secret VALUES (3)\')$$');
is($apps[0]->value('SELECT caller()'), 1, 'called in one it is part of it');

# A worker that connected when its role was a superuser does not serve it when it is one no more.
$admin->query('CREATE ROLE boss LOGIN SUPERUSER');
my $boss = gather('boss');
is($boss->value(unit(q{SELECT keep('SET SESSION AUTHORIZATION team'); INSERT INTO t (id, at) SELECT 41, session_user})), 1, 'a superuser may');
is($admin->value('SELECT at FROM t WHERE id = 41'), 'team', 'become anybody');
$before = $admin->value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir submitter' AND usename = 'boss'});
$admin->query('ALTER ROLE boss NOSUPERUSER; GRANT EXECUTE ON FUNCTION weir.submit TO boss');
is_error(app_of($node, user => 'boss'), unit(q{SELECT keep('SET SESSION AUTHORIZATION team')}), '42501', 'who is no superuser may not');
poll_until('its worker is gone', sub { $admin->value("SELECT count(*) FROM pg_stat_activity WHERE pid = $before") == 0 });
$admin->query(q{ALTER ROLE boss NOLOGIN; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'boss'});
@company = grep { $_->{user} ne 'boss' } @company;

# Another role has another worker.
my $other = gather('other');
is(workers(q{usename IN ('app', 'other')}), 2, 'a worker for each role');
is_error($other, unit('SELECT count(*) FROM mine.t'), '42501', 'with its own rights');
$admin->query('CREATE ROLE third LOGIN; GRANT EXECUTE ON FUNCTION weir.submit TO third; GRANT ALL ON t TO third');
is(app_of($node, user => 'third')->value(unit('INSERT INTO t VALUES (50)')), 1, 'where there is no worker it works as well');

note(sprintf '%.1f s', Time::HiRes::time() - $began);

# ---- interrupts

my ($first, $second) = @apps[ 6 .. 7 ];
$before = $admin->value('SELECT sum(v) FROM held WHERE id > 2');
while_worker_waits($apps[8], sub {
	send_all([ $first, $second ], map { unit("UPDATE held SET v = v + 1 WHERE id = $_") } 3 .. 4);
	$admin->query('SELECT pg_cancel_backend(' . $first->pid . ')');
	is($first->answer->{code}, '57014', 'cancelled while it waits for the worker');
	$admin->query('SELECT pg_terminate_backend(' . $second->pid . ')');
	is($second->answer->{code}, '57P01', 'terminated');
});
is($admin->value('SELECT sum(v) FROM held WHERE id > 2'), $before, 'then it was not executed');

$apps[7] = app_of($node, options => '-c app.tenant=');
sub worker_pid { return $admin->value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir submitter' AND usename = 'app'}) }
foreach my $signal ('pg_cancel_backend', 'pg_terminate_backend')
{
	$admin->query('DELETE FROM t');
	$answer = while_worker_waits($apps[8], sub {
		my ($locker) = @_;
		send_all(\@apps, map { unit("INSERT INTO public.t VALUES ($_)") } 1 .. 5);
		$admin->query("SELECT $signal(" . worker_pid() . ')');
		poll_until('nobody waits for the worker', sub { workers("wait_event_type = 'Lock'") == 0 });
	});
	is($answer->{rows}[0][0], 1, "$signal of the worker: the session does it itself");
	is(join(' ', map { $apps[$_]->answer->{rows}[0][0] // 'error' } 0 .. 4), '1 1 1 1 1', 'and so do the others');
	is($admin->value('SELECT count(*) FROM t'), 5, 'once');
	await_worker($apps[9]);
}
$admin->query('SELECT pg_cancel_backend(' . worker_pid() . ')');
$before = worker_pid();
$apps[9]->query(unit('SELECT 1'));
is(worker_pid(), $before, 'there is nothing to cancel in an idle worker');

# A unit that takes too long is its session's own.
$before = figure(q{coalesce(given_back_by_reason->>'too slow', '0')});
is($apps[10]->value(unit('INSERT INTO t SELECT 60 FROM pg_sleep(1.2)')), 1, 'a slow unit');
is(figure(q{given_back_by_reason->>'too slow'}) - $before, 1, 'was given back');

note(sprintf '%.1f s', Time::HiRes::time() - $began);

# ---- keys

$admin->query('DELETE FROM t');
$app = app_of($node);
foreach my $where ('worker', 'session')
{
	my $session = $where eq 'worker' ? $apps[9] : $app;
	$session->query('SET weir.coalesce = off') if $where eq 'session';
	$before = figure('units');
	my $sql = unit('UPDATE held SET v = v + $1 WHERE id > 5', params => [1], key => "k $where");
	is($session->value($sql), 4, "$where: with a key");
	my $sum = $admin->value('SELECT sum(v) FROM held WHERE id > 5');
	is($session->value($sql), 4, "$where: again");
	is($admin->value('SELECT sum(v) FROM held WHERE id > 5'), $sum, "$where: not executed again");
	is(figure('units') - $before, $where eq 'worker' ? 2 : 0, "$where: by it");
	is_error($session, unit('UPDATE held SET v = v + $1 WHERE id > 5', params => [2], key => "k $where"), '22023', "$where: other parameters");
	is_error($session, unit('UPDATE held SET v = 0', key => "k $where"), '22023', "$where: other statements");
	is_error($session, unit('INSERT INTO t VALUES (1, 5000)', key => "e $where"), '23514', "$where: an error");
	is($session->value(unit('INSERT INTO t VALUES (' . length($where) . ')', key => "e $where")), 1, "$where: an error is no outcome");
}
is($apps[9]->value(unit('UPDATE held SET v = v + $1 WHERE id > 5', params => [1], key => 'k session')), 4, 'a worker knows the session\'s keys');
cmp_ok(figure('replayed'), '>=', 3, 'replayed');
is($other->value(unit('INSERT INTO t VALUES (61)', key => 'k worker')), 1, 'a key is its role\'s');
is_error($app, unit('SELECT 1', key => 'x' x 300), '22023', 'too long');
is_error($app, 'DELETE FROM weir.submitted_key', '42501', 'nobody may change what is remembered');

# Two at once: the second waits for the first.
foreach my $end ('COMMIT', 'ROLLBACK')
{
	my $sql = unit('INSERT INTO t (id) SELECT max(id) + 1 FROM t', key => "two $end");
	my $count = $admin->value('SELECT count(*) FROM t');
	$app->query('BEGIN');
	$app->query($sql);
	$apps[9]->send($sql);
	$apps[8]->send($sql);
	poll_until('they wait', sub { $admin->value(q{SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted}) >= 1 });
	$app->query($end);
	is($_->answer->{rows}[0][0], 1, "$end: an answer") foreach @apps[ 8 .. 9 ];
	is($admin->value('SELECT count(*) FROM t'), $count + 1, "$end: executed once");
}

# Forgotten after a while, by whoever comes by.
$admin->query(q{UPDATE weir.submitted_key SET at = at - interval '2 days' WHERE key = 'k worker' AND role = 'app'::regrole});
my $sum = $admin->value('SELECT sum(v) FROM held WHERE id > 5');
$apps[9]->query(unit('UPDATE held SET v = v + $1 WHERE id > 5', params => [1], key => 'k worker'));
is($admin->value('SELECT sum(v) FROM held WHERE id > 5'), $sum + 4, 'a key that was forgotten is new');
$admin->query(q{INSERT INTO weir.submitted_key SELECT 'app', 'old' || g, '', 0, now() - interval '2 days' FROM generate_series(1, 2500) g});
poll_until('forgotten', sub { $admin->value(q{SELECT count(*) FROM weir.submitted_key WHERE key LIKE 'old%'}) == 0 });
is($admin->value(q{SELECT count(*) FROM weir.submitted_key WHERE key = 'k worker'}), 2, 'others are not');

# A dump has what is remembered.
my $dump = "$PostgreSQL::Test::Utils::tmp_check/submit.sql";
$node->command_ok([ 'pg_dump', '-f', $dump, 'postgres' ], 'pg_dump');
$admin->query('CREATE DATABASE restored');
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-d', 'restored', '-f', $dump ], 'restored');
my $restored = app_of($node, database => 'restored');
my $count = $restored->value('SELECT sum(v) FROM held');
is($restored->value(unit('UPDATE held SET v = v + $1 WHERE id > 5', params => [1], key => 'k session')), 4, 'the first outcome');
is($restored->value('SELECT sum(v) FROM held'), $count, 'in the restored database, too');
$restored->close;
$admin->query('CREATE DATABASE owned OWNER app');
admin_of($node, database => 'owned')->query('CREATE EXTENSION pg_weir');
$node->command_ok([ 'pg_dump', '-U', 'app', '-f', $dump, 'owned' ], 'pg_dump by who owns the database, and is no superuser');

note(sprintf '%.1f s', Time::HiRes::time() - $began);

# ---- a standby that never answers

$sum = $admin->value('SELECT sum(v) FROM held WHERE id > 5');
my $unsure = unit('UPDATE held SET v = v + 1 WHERE id > 5', key => 'unsure');
set_standbys($node, 'nobody');
$apps[9]->send($unsure);
poll_until('the worker waits for a standby', sub { workers("wait_event = 'SyncRep'") == 1 });
$admin->query('SELECT pg_terminate_backend(' . worker_pid() . ')');
is($apps[9]->answer->{code}, '40003', 'its worker was ended while it waited: nobody knows');
set_standbys($node, '');
is($apps[9]->value($unsure), 4, 'tried again with the same key: the first outcome');
is($admin->value('SELECT sum(v) FROM held WHERE id > 5'), $sum + 4, 'executed once');

note(sprintf '%.1f s', Time::HiRes::time() - $began);

# ---- a database is dropped

$admin->query('CREATE DATABASE doomed');
admin_of($node, database => 'doomed')->query('CREATE EXTENSION pg_weir; CREATE TABLE held (id int, v int); INSERT INTO held VALUES (1, 0);
	GRANT ALL ON held TO app; GRANT EXECUTE ON FUNCTION weir.submit TO app');
my $blocker = admin_of($node, database => 'doomed');
$blocker->query($_) foreach 'BEGIN', 'LOCK TABLE held';
$admin->query('SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = \'other\'');
my @doomed = map { app_of($node, database => 'doomed') } 1 .. 9;
$_->send(unit('UPDATE held SET v = v + 1')) foreach @doomed;
my $visitor = app_of($node, database => 'doomed');
poll_until('a worker there', sub { $visitor->query(unit('SELECT 1')); workers(q{datname = 'doomed'}) == 1 });
$blocker->query('COMMIT');
$_->answer foreach @doomed;
$_->close foreach @doomed, $visitor, $blocker;
poll_until('they are gone', sub { $admin->value(q{SELECT count(*) FROM pg_stat_activity WHERE datname = 'doomed' AND backend_type = 'client backend'}) == 0 });
# A checkpoint is part of it: it may take a while. A backend in the way makes it an error.
is($admin->send('DROP DATABASE doomed')->answer->{code}, '', 'a worker does not keep a database from being dropped');

note(sprintf '%.1f s', Time::HiRes::time() - $began);

# ---- crashes

$sum = $admin->value('SELECT sum(v) FROM held WHERE id > 5');
my $once = unit('UPDATE held SET v = v + 1 WHERE id > 5', key => 'crash');
is($apps[9]->value($once), 4, 'acknowledged');
my $kill = worker_pid();
$sum += 4;
my $unanswered = while_worker_waits_and_dies();

sub while_worker_waits_and_dies
{
	my $locker = admin_of($node);
	$locker->query('BEGIN');
	$locker->query('UPDATE held SET v = v WHERE id = 2');
	$apps[8]->send(unit('UPDATE held SET v = v + 1 WHERE id > 5; UPDATE held SET v = v + 1 WHERE id = 2', key => 'torn'));
	poll_until('the worker waits', sub { workers("wait_event_type = 'Lock'") == 1 });
	kill 'KILL', worker_pid();
	return $apps[8]->answer;
}
poll_until('the server answers', sub { eval { $admin = admin_of($node); $admin->value('SELECT 1') } });
($holder, @company) = ();
is($admin->value('SELECT sum(v) FROM held WHERE id > 5'), $sum, 'after a crash: what was acknowledged, and nothing else');
$app = gather();
is($app->value($once), 4, 'tried again: the first outcome');
is($admin->value('SELECT sum(v) FROM held WHERE id > 5'), $sum, 'not executed again');
is($app->value(unit('UPDATE held SET v = v + 1 WHERE id > 5; UPDATE held SET v = v + 1 WHERE id = 2', key => 'torn')), 5, 'what was torn is executed');
is($admin->value('SELECT sum(v) FROM held WHERE id > 5'), $sum + 4, 'once');

$admin->query('SELECT weir.reset()');
is(figure('units'), 0, 'weir.reset()');
$holder->query('COMMIT');
$_->answer foreach @company;
nothing_left($admin, 'at the end');
done_testing();
