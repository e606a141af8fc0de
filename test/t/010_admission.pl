# Who waits for a slot and who does not, when slots come back, and how a refusal looks.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use IPC::Run;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = gated_node(
	'gate',
	node => { allows_streaming => 1 },    # for synchronous_standby_names
	max_connections => 230,
	max_prepared_transactions => 2);
my $admin = admin_of($node);
$admin->query($_)
  foreach 'CREATE TABLE t (i int)', 'GRANT ALL ON t TO app', 'CREATE ROLE mon LOGIN', 'GRANT pg_monitor TO mon',
  'GRANT pg_read_all_data TO mon', 'CREATE TABLE arrivals (id serial, who text)',
  'GRANT ALL ON arrivals, arrivals_id_seq TO app', 'CREATE TABLE seen (active int)', 'GRANT ALL ON seen TO app',
  'CREATE PROCEDURE committing() LANGUAGE plpgsql AS $$BEGIN INSERT INTO t VALUES (1); COMMIT;
	INSERT INTO t VALUES (2); COMMIT; END$$',
  'CREATE PROCEDURE ending(how text, key int) LANGUAGE plpgsql AS $$BEGIN PERFORM 1;
	IF how = \'commit\' THEN COMMIT; ELSE ROLLBACK; END IF; PERFORM pg_advisory_xact_lock(key); END$$';

my ($holder, $session) = map { app_of($node) } 1 .. 2;

sub hold { return $holder->query('BEGIN') }
sub give_back { return $holder->query('COMMIT') }

# ---- what waits

$session->query('PREPARE one AS SELECT 1');
$session->parse('insert', 'INSERT INTO t VALUES (1)');
$session->parse('vacuum', 'VACUUM t');
$session->parse('begin', 'BEGIN');

foreach my $sql (
	'BEGIN',
	'START TRANSACTION',
	'SELECT 1',
	'SELECT 1; SELECT 2',
	'INSERT INTO t VALUES (1)',
	'SET work_mem = 64; SELECT 1',
	'CREATE TABLE made (i int)',
	'CREATE TABLE copied AS SELECT 1',
	'DROP TABLE made',
	'TRUNCATE t',
	'VACUUM made_by_admin',
	'COPY t TO STDOUT',
	'COPY t FROM STDIN',
	'EXPLAIN ANALYZE SELECT 1',
	'EXECUTE one',
	'DECLARE c CURSOR WITH HOLD FOR SELECT 1',
	'CALL committing()',
	'DO $$BEGIN COMMIT; END$$')
{
	$admin->query('CREATE TABLE IF NOT EXISTS made_by_admin ()') if $sql =~ /made_by_admin/;
	hold();
	$session->send($sql);
	waits_for_slot($admin, $session, $sql, \&give_back);
	$session->query('COMMIT') if $sql =~ /^(BEGIN|START)/;
}
foreach my $name ('insert', 'vacuum', 'begin')
{
	hold();
	$session->execute($name);
	waits_for_slot($admin, $session, "Bind and Execute of a prepared $name", \&give_back);
}
$session->query('COMMIT');

hold();
$session->send('SELECT 1');
wait_for_waiting($admin, 1);
is($admin->value("SELECT wait_event_type FROM pg_stat_activity WHERE pid = " . $session->pid),
	'Extension', 'pg_stat_activity shows what it waits for');
is($admin->value("SELECT state || position FROM weir.activity WHERE pid = " . $session->pid),
	'waiting0', 'weir.activity shows its place');
give_back();
$session->answer;
nothing_left($admin, 'after everything that waits');

# ---- what does not wait

hold();
answers_at_once($session, $_)
  foreach 'SET work_mem = 64', 'SHOW work_mem', 'RESET work_mem', 'LISTEN something', 'NOTIFY something',
  'UNLISTEN *', 'PREPARE two AS SELECT 2', 'DEALLOCATE two', 'DISCARD ALL', 'COMMIT', 'ROLLBACK', '';
my $parsed = $session->parse('at_parse', 'SELECT count(*) FROM t');
is($parsed->{code}, '', 'Parse does not wait');
is($session->state($admin), '', 'and nothing of this took a slot');

# A chained transaction begins within COMMIT, which must not wait: its first statement does.
give_back();
$session->query('BEGIN');
$session->query('COMMIT AND CHAIN');
is($session->state($admin), '', 'COMMIT AND CHAIN gives the slot back');
hold();
$session->send('SELECT 1');
waits_for_slot($admin, $session, 'the first statement of a chained transaction', \&give_back);
is($session->state($admin), 'active', 'which then has a slot');
$session->query('COMMIT');
hold();

# COMMIT and ROLLBACK of transactions that are over the limit: begun while it was off.
my @open = map { app_of($node) } 1 .. 3;
give_back();
reconfigure($admin, 'weir.mode' => 'off');
$_->query('BEGIN') foreach @open;
$open[0]->query('INSERT INTO t VALUES (0)');
reconfigure($admin, 'weir.mode' => 'enforce');
hold();
$session->send('SELECT 1');
wait_for_waiting($admin, 1);
answers_at_once($open[0], 'INSERT INTO t VALUES (1)', 'a transaction begun while the mode was off, which has written');
answers_at_once($open[1], 'SELECT 1', 'one that had done nothing yet');
answers_at_once($open[2], 'PREPARE three AS SELECT 3', 'one more, to roll back');
answers_at_once($open[0], 'COMMIT', 'its COMMIT');
answers_at_once($open[1], 'ROLLBACK', 'its ROLLBACK');
$open[2]->send('SELECT 1/0')->answer;
answers_at_once($open[2], 'ROLLBACK', 'ROLLBACK after an error');
is(admission($admin, 'active'), 1, 'they held no slot');
$open[0]->send('SELECT 1');
wait_for_waiting($admin, 2);
pass('the next transaction of that session is gated');
give_back();
$_->answer foreach $session, $open[0];
$_->close foreach @open;
nothing_left($admin, 'after what does not wait');

# ---- first come, first served, one at a time

my @queue = map { app_of($node) } 1 .. 8;
hold();
foreach my $i (0 .. $#queue)
{
	$queue[$i]->send("INSERT INTO arrivals (who) VALUES ($i)");
	wait_for_waiting($admin, $i + 1);
}
is( $admin->value(
		"SELECT string_agg(pid::text, ' ' ORDER BY position) FROM weir.activity WHERE state = 'waiting'"),
	join(' ', map { $_->pid } @queue),
	'the queue is in the order of arrival');
give_back();
$_->answer foreach @queue;
is($admin->value("SELECT string_agg(who, ' ' ORDER BY id) FROM arrivals"),
	join(' ', 0 .. $#queue), 'slots are handed out in that order');
$_->close foreach @queue;

# ---- one client that drives 200 connections, more than the limit ever lets in, and control under siege

reconfigure($admin, 'weir.max_active' => 2);
my $script = "$PostgreSQL::Test::Utils::tmp_check/seen.sql";
append_to_file($script, <<'SQL');
BEGIN;
SELECT pg_advisory_xact_lock_shared(42);
INSERT INTO seen SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42;
COMMIT;
INSERT INTO t SELECT 1 FROM pg_class LIMIT 1;
SQL
hold();
my $other = app_of($node);
$other->query('BEGIN');
my $pgbench = IPC::Run::start(
	[
		'pgbench', '-n', '-M', 'prepared', '-c', '200', '-j', '1', '-t', '5', '-f', $script, '-h', $node->host, '-p',
		$node->port, '-U', 'app', 'postgres'
	],
	'>', \my $pgbench_out, '2>', \my $pgbench_err, IPC::Run::timeout(60));
wait_for_waiting($admin, 200);
is(admission($admin, 'active'), 2, '200 wait, 2 run');
my $dba = eval { admin_of($node) };
ok($dba, 'a superuser connects');
{
	local $PgWeir::at_once_s = 1;
	answers_at_once($dba, $_) foreach 'SELECT count(*) FROM t', map { "SELECT * FROM weir.$_" } qw(stat_admission stat_class activity);
	answers_at_once($other, 'ROLLBACK');
	answers_at_once($holder, 'COMMIT');
}
my ($most, $samples) = (0, 0);
while ($pgbench->pumpable)
{
	my $active = admission($admin, 'active');
	$most = $active if $active > $most;
	$samples++;
	$pgbench->pump_nb;
}
ok($pgbench->finish, 'pgbench -M prepared -c 200 -j 1 ends') || diag($pgbench_err);
like($pgbench_out, qr{actually processed: 1000/1000}, 'with all transactions');
cmp_ok($most, '<=', 2, "never more than 2 active, in $samples samples");
is($admin->value('SELECT max(active) FROM seen'), 2, 'never more than 2 held its lock, and once there were 2');
nothing_left($admin, 'after pgbench');

# ---- when a slot is given back

reconfigure($admin, 'weir.max_active' => 1);
foreach my $way (
	[ 'COMMIT', 'BEGIN; SELECT 1', 'COMMIT' ],
	[ 'ROLLBACK', 'BEGIN; SELECT 1', 'ROLLBACK' ],
	[ 'an error', 'BEGIN; SELECT 1', 'SELECT 1/0' ],
	[ 'a syntax error', 'BEGIN', 'SELEC' ],
	[ 'PREPARE TRANSACTION', 'BEGIN; INSERT INTO t VALUES (1)', "PREPARE TRANSACTION 'p'" ])
{
	my ($name, $begin, $end) = @$way;
	$holder->send($_)->answer foreach split(/; /, $begin);
	$session->send('SELECT 1');
	wait_for_waiting($admin, 1);
	$holder->send($end)->answer;
	my $answer = $session->answer($PgWeir::at_once_s);
	is($answer && $answer->{tag}, 'SELECT 1', "$name gives the slot back");
	is(admission($admin, 'active'), 0, "$name: none is active");
	$holder->query('ROLLBACK');
}
hold();
$session->send('SELECT 1');
wait_for_waiting($admin, 1);
answers_at_once($other, "COMMIT PREPARED 'p'", 'COMMIT PREPARED does not wait');
$holder->close;
$session->answer;
nothing_left($admin, 'the end of the connection');
$holder = app_of($node);
foreach my $sql ('SELECT 1/0', 'SELEC', 'CREATE TABLE t ()')
{
	$session->send($sql)->answer;
	is(admission($admin, 'active'), 0, "an autocommit error gives the slot back: $sql");
}

# A procedure keeps its slot until it ends, whatever it ends inside.
$admin->query('SELECT pg_advisory_lock(7)');
foreach my $how (qw(commit rollback))
{
	$holder->send("CALL ending('$how', 7)");
	poll_until('the procedure has gone on', sub { $admin->value("SELECT count(*) FROM pg_locks WHERE NOT granted") == 1 });
	is($holder->state($admin), 'active', "a procedure's $how keeps the slot");
	$session->send('SELECT 1');
	wait_for_waiting($admin, 1);
	ok(!$session->answered, 'the others wait');
	$admin->query('SELECT pg_advisory_unlock(7)');
	is($holder->answer->{code}, '', 'the procedure ends');
	is($session->answer->{code}, '', 'and its slot is given back');
	$admin->query('SELECT pg_advisory_lock(7)') if $how eq 'commit';
}
nothing_left($admin, 'after procedures');

# ---- the silent lend

$admin->query('SELECT pg_advisory_lock(8)');
reconfigure($admin, 'weir.idle_yield' => '5ms');
hold();
answers_at_once($session, 'SELECT 1', 'a silent transaction lends its slot');
$session->send('SELECT pg_advisory_xact_lock(8)');
poll_until('the borrower runs', sub { $session->state($admin) eq 'active' });
is($holder->state($admin), 'lent', 'weir.activity shows who lends');
is($admin->value("SELECT concat_ws(' ', active, lent) FROM weir.stat_admission"), '1 1', 'and the counters');
answers_at_once($holder, 'SELECT 1', 'it speaks again: it runs at once');
is(admission($admin, 'active'), 2, 'over the limit, and counted');
is(admission($admin, 'lendings'), 1, 'a lending is counted');
answers_at_once($holder, 'COMMIT', 'its COMMIT');
$admin->query('SELECT pg_advisory_unlock(8)');
$session->answer;
nothing_left($admin, 'after lending');

reconfigure($admin, 'weir.idle_yield' => -1);
hold();
$session->send('SELECT 1');
waits_long_enough($admin, $session->pid);
ok(!$session->answered, 'weir.idle_yield = -1: the silent lend nothing');
is($holder->state($admin), 'active', 'and hold their slot');
reconfigure($admin, 'weir.idle_yield' => '5ms');
ok($session->answer($PgWeir::at_once_s), 'lending is switched on for those who wait');
give_back();
reconfigure($admin, 'weir.idle_yield' => -1);

# ---- a wait for a synchronous standby lends

set_standbys($node, 'nobody');
$holder->send('INSERT INTO t VALUES (1)');
poll_until('it waits for the standby',
	sub { $admin->value("SELECT wait_event FROM pg_stat_activity WHERE pid = " . $holder->pid) eq 'SyncRep' });
reconfigure($admin, 'weir.idle_yield' => '5ms');
answers_at_once($session, 'SELECT 1', 'a transaction that waits for a standby lends its slot');
is($holder->state($admin), 'lent', 'weir.activity shows it');
set_standbys($node, '');
reconfigure($admin, 'weir.idle_yield' => -1);
is($holder->answer->{code}, '', 'its COMMIT ends');
nothing_left($admin, 'after the wait for a standby');

# ---- refusals

reconfigure($admin, 'weir.queue_size' => 2);
hold();
my @waiters = map { app_of($node) } 1 .. 2;
$_->send('SELECT 1') foreach @waiters;
wait_for_waiting($admin, 2);
my $refused = admission($admin, 'refused');
my $answer = $session->send('BEGIN')->answer($PgWeir::at_once_s);
is_refused($answer, qr/^Waiting: 2, weir\.queue_size is 2; class "default"\.$/, 'the queue is full');
is($answer->{status}, 'I', 'no transaction has begun');
is(admission($admin, 'refused'), $refused + 1, 'a refusal is counted');
is(admission($admin, 'waiting'), 2, 'the others wait on');
give_back();
$_->answer foreach @waiters;
is($session->value('SELECT 1'), 1, 'a refused session goes on');

reconfigure($admin, 'weir.queue_size' => 0, 'weir.queue_timeout' => '200ms');
hold();
my $timed_out = admission($admin, 'timed_out');
my $began = Time::HiRes::time();
$answer = $session->send('SELECT 1')->answer;
my $took_s = Time::HiRes::time() - $began;
is_refused(
	$answer,
	qr/^Transactions that run: 1, the limit is 1 \(weir\.max_active\); waiting: 0, of them in class "default": 0\.$/,
	'weir.queue_timeout');
like($answer->{message}, qr/^no transaction slot became free within 0\.[23] s$/, 'it says how long it waited');
cmp_ok($took_s, '>=', 0.2, 'not before its time');
cmp_ok($took_s, '<', 0.2 + $PgWeir::at_once_s, 'not long after');
is(admission($admin, 'timed_out'), $timed_out + 1, 'a timeout is counted');
is($answer->{severity}, 'ERROR', 'weir.reject_as = error');
is($answer->{status}, 'I', 'the session goes on');

reconfigure($admin, 'weir.reject_as' => 'fatal', 'weir.queue_timeout' => '201ms');
$answer = $session->send('BEGIN')->answer;
is("$answer->{severity} $answer->{code}", 'FATAL 53300', 'weir.reject_as = fatal');
ok($answer->{closed} || $session->answer->{closed}, 'ends the session whose BEGIN is refused');
reconfigure($admin, 'weir.reject_as' => 'error');
give_back();
$session = app_of($node);
nothing_left($admin, 'after refusals');

# ---- who bypasses

my $monitor = PgWeir::Session->new($node, user => 'mon');
hold();
answers_at_once($monitor, 'SELECT active FROM weir.stat_admission', 'a monitor reads the views while every slot is taken');
$session->send('SELECT 1');
wait_for_waiting($admin, 1);
my $bypassed = admission($admin, 'bypassed');
answers_at_once($monitor, 'SELECT active FROM weir.stat_admission', 'and while somebody waits');
cmp_ok(admission($admin, 'bypassed'), '>', $bypassed, 'a bypass is counted');
answers_at_once($monitor, "SELECT * FROM weir.$_", "a monitor reads weir.$_")
  foreach qw(stat_class activity admission_history);
answers_at_once($monitor, 'SELECT a.pid FROM weir.activity a JOIN pg_stat_activity USING (pid)', 'with a system view');
$monitor->send('SELECT (SELECT active FROM weir.stat_admission), count(*) FROM t');
waits_for_slot($admin, $monitor, 'a monitor that reads a table as well', \&give_back);
$session->answer;
hold();
$monitor->send('SELECT 1');
waits_for_slot($admin, $monitor, 'a monitor that reads no view', \&give_back);

# One session that is in a transaction from before looks on, for now superusers wait too.
my $boss = admin_of($node);
hold();
answers_at_once($boss, 'SELECT 1', 'weir.superuser_bypass = on');
give_back();
$admin->query('ALTER SYSTEM SET weir.superuser_bypass = off');
$dba->query('BEGIN');
$dba->query('SELECT pg_reload_conf()');
poll_until('superusers are gated', sub { $boss->query('BEGIN'); my $held = $boss->state($dba); $boss->query('ROLLBACK'); $held ne '' });
hold();
$boss->send('SELECT 1');
waits_for_slot($dba, $boss, 'a superuser, with weir.superuser_bypass = off', \&give_back);
$dba->query('COMMIT');
reconfigure($admin, 'weir.superuser_bypass' => 'on');
nothing_left($admin, 'after bypasses');

# ---- the other modes

reconfigure($admin, 'weir.mode' => 'observe');
hold();
my ($admitted, $queued) = map { admission($admin, $_) } qw(admitted queued);
answers_at_once($session, 'SELECT 1', 'weir.mode = observe delays nobody');
is(admission($admin, 'queued'), $queued + 1, 'and counts who would have waited');
is(admission($admin, 'admitted'), $admitted + 1, 'and who came');
is(admission($admin, 'active'), 1, 'and who is active');
give_back();
answers_at_once($session, 'SELECT 1', 'one that found a slot');
is(admission($admin, 'queued'), $queued + 1, 'would not have waited');
nothing_left($admin, 'after observe');

reconfigure($admin, 'weir.mode' => 'off');
($admitted, $queued) = map { admission($admin, $_) } qw(admitted queued);
hold();
answers_at_once($session, 'SELECT 1', 'weir.mode = off delays nobody');
give_back();
is(admission($admin, 'admitted'), $admitted, 'and counts nobody');
is(admission($admin, 'queued'), $queued, 'nor queues');

# Switched off under those who wait.
reconfigure($admin, 'weir.mode' => 'enforce');
hold();
$session->send('SELECT 1');
wait_for_waiting($admin, 1);
reconfigure($admin, 'weir.mode' => 'off');
ok($session->answer($PgWeir::at_once_s), 'switching off releases those who wait');
give_back();
nothing_left($admin, 'after off');

done_testing();
