# Read your own writes: a standby's session waits for its token, without a snapshot, and no longer than it may; what it
# cannot wait for is an error, never a stale read. Through promotion, and with tokens of lost writes.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# No limit: nothing here is about slots.
my $primary = gated_node('primary', node => { allows_streaming => 1 }, 'weir.max_active' => 0, 'max_prepared_transactions' => 2);
my $writer_admin = admin_of($primary);
$writer_admin->query($_) foreach 'CREATE TABLE t (i int)', 'INSERT INTO t VALUES (1)', 'GRANT ALL ON t TO app';
$primary->backup('base');
sub standby_of
{
	my ($name) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	$node->init_from_backup($primary, 'base', has_streaming => 1);
	$node->start;
	return $node;
}
my ($standby, $other) = (standby_of('standby'), standby_of('other'));
my $admin = admin_of($standby);
my $writer = app_of($primary);
my $reader = app_of($standby);

sub next_row
{
	my ($i) = @_;
	$writer->query("INSERT INTO t VALUES ($i)");
	return $writer->value('SELECT weir.last_commit_token()');
}
sub resume { return $_[0]->query('SELECT pg_wal_replay_resume()') }
sub waiting { return $_[0]->value('SELECT waiting FROM weir.stat_replay_wait') }
sub wait_for_readers { my ($on, $n) = @_; return poll_until("$n wait for replay", sub { waiting($on) == $n }) }
# A test: $session waits for replay, without a snapshot; then replay goes on and its answer comes.
sub waits_for_replay
{
	my ($session, $name) = @_;
	wait_for_readers($admin, 1);
	is($admin->value('SELECT coalesce(backend_xmin::text, $$none$$) FROM pg_stat_activity WHERE pid = ' . $session->pid), 'none', "$name: waits without a snapshot");
	resume($admin);
	my $answer = $session->answer;
	is(waiting($admin), 0, "$name: nobody waits any more");
	return $answer;
}
sub last_row { my ($answer) = @_; return $answer->{code} ? "$answer->{code} $answer->{message}" : $answer->{rows}[-1][0] }

# ---- the token

is(app_of($primary)->value('SELECT weir.last_commit_lsn()'), '', 'a session that wrote nothing has no token');
my $token = next_row(2);
like($token, qr/^[0-9A-F]+\/[0-9A-F]+\@1$/, 'LSN and timeline');
is($writer->value('SELECT weir.last_commit_lsn()') . '@1', $token, 'the LSN alone');
$writer->query('SELECT count(*) FROM t');
is($writer->value('SELECT weir.last_commit_token()'), $token, 'reading does not change it');
$writer->query($_) foreach 'BEGIN', 'INSERT INTO t VALUES (0)', q{PREPARE TRANSACTION 'p'};
is($writer->value('SELECT weir.last_commit_token()'), $token, 'nor does what is not committed');
$writer->query(q{COMMIT PREPARED 'p'});
isnt($writer->value('SELECT weir.last_commit_token()'), $token, 'COMMIT PREPARED does');
cmp_ok($writer->value("SELECT pg_current_wal_insert_lsn() - weir.last_commit_lsn()"), '>=', 0, 'it is in the WAL');

foreach my $bad ('x', '0', '0/', '0/1@', '0/1@0', '0/123456789', ' 0/1')
{
	my $answer = $reader->send("SET weir.min_lsn = '$bad'")->answer;
	is($answer->{code}, '22023', "malformed: '$bad'");
	like($answer->{hint}, qr/as pg_lsn does/, "with a hint");
}
is($reader->send("SELECT weir.lsn_reached('nonsense')")->answer->{code}, '22P02', 'malformed: lsn_reached');
is($reader->send("CALL weir.wait_for_lsn('0/1', '-1 s')")->answer->{code}, '22023', 'a negative timeout');

# Committed by a worker for the session: the token is that of the batch. Who waits for a locked row is company enough.
my @company = map { app_of($primary) } 1 .. 14;
my $coalesced = app_of($primary);
$writer_admin->query($_) foreach 'CREATE TABLE events (i int PRIMARY KEY)', 'GRANT ALL ON events TO app', 'INSERT INTO events VALUES (0)';
opt_in($writer_admin, 'events');
my ($before, $key) = ('', 0);
my $observer = admin_of($primary);
poll_until(
	'a worker',
	sub {
		$coalesced->query('UPDATE events SET i = i WHERE i = 0');
		$observer->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer'") == 1;
	});
$writer_admin->query('BEGIN');
$writer_admin->query('SELECT 1 FROM events WHERE i = 0 FOR UPDATE');
$_->send('UPDATE events SET i = i WHERE i = 0') foreach @company;
poll_until('company', sub { $observer->value('SELECT count(*) FROM pg_locks WHERE NOT granted') >= @company });
poll_until(
	'one is coalesced',
	sub {
		$before = $observer->value('SELECT pg_current_wal_insert_lsn()');
		my $requests = 'SELECT sum(requests) FROM weir.stat_coalesce';
		my $so_far = $observer->value($requests);
		$coalesced->query('INSERT INTO events VALUES (' . ++$key . ')');
		$observer->value($requests) > $so_far;
	});
is($coalesced->value("SELECT weir.last_commit_lsn() > '$before' AND weir.last_commit_lsn() <= pg_current_wal_flush_lsn()"), 't', 'a coalesced write has its token');
$writer_admin->query('ROLLBACK');
$_->answer foreach @company;
$_->close foreach @company, $coalesced, $observer;

# ---- who sleeps on the same word is woken with the others, looks, and sleeps again: 512 kB further on it is the same one

my ($near, $far) = map { $writer->value("SELECT pg_current_wal_insert_lsn() + 8 + $_ * 524288") } 0, 8;
my ($sooner, $later) = map { app_of($standby) } 1 .. 2;
$sooner->send("CALL weir.wait_for_lsn('$near', '1 min')");
$later->send("CALL weir.wait_for_lsn('$far', '1 min')");
wait_for_readers($admin, 2);
$writer->query('INSERT INTO t VALUES (0)');
is($sooner->answer->{tag}, 'CALL', 'whose LSN is replayed goes on');
is(waiting($admin), 1, 'the other waits');
ok(!$later->answered, 'and has no answer');
$writer_admin->query(q{SELECT pg_logical_emit_message(true, 'far', repeat('x', 5000000))});
is($later->answer->{tag}, 'CALL', 'until its own is');

# ---- waiting, every way into a transaction

my $i = 2;
foreach my $way (
	[ 'autocommit', sub { $_[0]->send('SELECT max(i) FROM t') } ],
	[ 'extended protocol', sub { $_[0]->extended('SELECT max(i) FROM t') } ],
	[ 'BEGIN', sub { $_[0]->send('BEGIN; SELECT max(i) FROM t; COMMIT') } ],
	[ 'repeatable read', sub { $_[0]->send('BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT max(i) FROM t; COMMIT') } ],
	[ 'EXPLAIN ANALYZE', sub { $_[0]->send('EXPLAIN (ANALYZE, COSTS off, TIMING off) SELECT max(i) FROM t') } ],
	[ 'COPY', sub { $_[0]->send('COPY (SELECT max(i) FROM t) TO STDOUT') } ],
	[ 'DECLARE', sub { $_[0]->send('BEGIN; DECLARE c CURSOR FOR SELECT max(i) FROM t; FETCH c; COMMIT') } ],
	[ 'DO', sub { $_[0]->send(q{DO $$ BEGIN RAISE NOTICE '%', (SELECT max(i) FROM t); END $$}) } ])
{
	my ($name, $send) = @$way;
	pause_replay($admin);
	$token = next_row(++$i);
	$reader->query("SET weir.lsn_wait_timeout = '30s'");
	$reader->query("SET weir.min_lsn = '$token'");
	$send->($reader);
	my $answer = waits_for_replay($reader, $name);
	is($answer->{code}, '', "$name: no error") or diag($answer->{message});
	next if $name eq 'EXPLAIN ANALYZE';
	is($name eq 'DO' ? $answer->{notices}[0]{message} : last_row($answer), $i, "$name: reads the write");
}

pause_replay($admin);
$token = next_row(++$i);
$reader->query('RESET weir.min_lsn');
$reader->query('BEGIN');
$reader->query("SET LOCAL weir.min_lsn = '$token'");
$reader->send('SELECT max(i) FROM t');
is(last_row(waits_for_replay($reader, 'SET LOCAL')), $i, 'SET LOCAL: reads the write');
$reader->query('COMMIT');
is($reader->value('SHOW weir.min_lsn'), '', 'and is gone afterwards');

pause_replay($admin);
$token = next_row(++$i);
$reader->query("SET default_transaction_isolation = 'repeatable read'");
$reader->send("SET weir.min_lsn = '$token'");
waits_for_replay($reader, 'under repeatable read SET itself');
is($reader->value('SELECT max(i) FROM t'), $i, 'so an autocommit statement reads the write');
$reader->query('RESET default_transaction_isolation');

pause_replay($admin);
$token = next_row(++$i);
$reader->send("CALL weir.wait_for_lsn('$token', '30 s')");
is(waits_for_replay($reader, 'CALL')->{tag}, 'CALL', 'CALL waits');
is($reader->value('SELECT max(i) FROM t'), $i, 'then one reads the write');
is($reader->value("SELECT weir.lsn_reached('$token')"), 't', 'lsn_reached');

# At connect, as poolers and drivers can set it.
pause_replay($admin);
$token = next_row(++$i);
my $fresh = app_of($standby, options => "-c weir.min_lsn=$token -c weir.lsn_wait_timeout=30s");
$fresh->send('SELECT max(i) FROM t');
is(last_row(waits_for_replay($fresh, 'from the connection string')), $i, 'reads the write');
$fresh->close;

# Once seen, never looked at again; and in off mode it works as well.
reconfigure($admin, 'weir.mode' => 'off');
pause_replay($admin);
answers_at_once($reader, 'SELECT 1', 'a reached token costs nothing');
$token = next_row(++$i);
$reader->query("SET weir.min_lsn = '$token'");
$reader->send('SELECT max(i) FROM t');
is(last_row(waits_for_replay($reader, 'mode off')), $i, 'mode off: reads the write');
reconfigure($admin, 'weir.mode' => 'enforce');

# Many, one poller.
pause_replay($admin);
$token = next_row(++$i);
my @readers = map { app_of($standby, options => "-c weir.min_lsn=$token -c weir.lsn_wait_timeout=30s") } 1 .. 20;
$_->send('SELECT max(i) FROM t') foreach @readers;
wait_for_readers($admin, 20);
resume($admin);
is(scalar(grep { last_row($_->answer) == $i } @readers), 20, 'twenty wait and read the write');
$_->close foreach @readers;

# ---- what ends a wait

pause_replay($admin);
$token = next_row(++$i);
$reader->query("SET weir.min_lsn = '$token'");
$reader->query("SET weir.lsn_wait_timeout = '50ms'");
my $answer = $reader->send('SELECT max(i) FROM t')->answer;
is($answer->{code}, '57014', 'time out');
like($answer->{detail}, qr/^Replayed is [0-9A-F\/]+, [1-9]\d* bytes before it\. Replay is paused\.$/, 'with what is left, and why');
like($answer->{hint}, qr/weir\.lsn_wait_timeout/, 'and a hint');
is($reader->send('SELECT max(i) FROM t')->answer->{code}, '57014', 'the next statement is not stale either');
$reader->query("SET weir.lsn_wait_timeout = 0");
is($reader->send('BEGIN')->answer->{code}, '57014', '0: it does not wait');
is($reader->send("CALL weir.wait_for_lsn('$token', '10 ms')")->answer->{code}, '57014', 'CALL times out');
is($reader->value('SHOW weir.min_lsn'), $token, 'SHOW is free');
$reader->query('RESET weir.min_lsn');
is($reader->value("SELECT weir.lsn_reached('$token')"), 'f', 'lsn_reached does not wait');
cmp_ok($admin->value('SELECT timed_out FROM weir.stat_replay_wait'), '>=', 4, 'timeouts are counted');

# A transaction that ran a query may hold locks that replay waits for; one with a snapshot would read stale.
$reader->query('BEGIN');
$reader->query('SELECT 1');
$reader->query("SET LOCAL weir.min_lsn = '$token'");
is($reader->send('SELECT max(i) FROM t')->answer->{code}, '25001', 'too late after a query');
$reader->query('ROLLBACK');
$reader->query('BEGIN');
$reader->query('SELECT 1');
is($reader->send("CALL weir.wait_for_lsn('$token')")->answer->{code}, '25001', 'CALL: too late after a query');
$reader->query('ROLLBACK');
$reader->query('BEGIN ISOLATION LEVEL REPEATABLE READ');
is($reader->send("CALL weir.wait_for_lsn('$token')")->answer->{code}, '25001', 'CALL: not under repeatable read');
$reader->query('ROLLBACK');
is($reader->send("DO \$\$ BEGIN CALL weir.wait_for_lsn('$token'); END \$\$")->answer->{code}, '25001', 'CALL: not in a function');

my @ends = (
	[ 'pg_cancel_backend', '57014', sub { $admin->query('SELECT pg_cancel_backend(' . $_[0]->pid . ')') } ],
	[ 'pg_terminate_backend', '57P01', sub { $admin->query('SELECT pg_terminate_backend(' . $_[0]->pid . ')') } ]);
foreach my $end (@ends)
{
	my ($name, $code, $do) = @$end;
	my $session = app_of($standby, options => "-c weir.min_lsn=$token -c weir.lsn_wait_timeout=60s");
	$session->send('SELECT 1');
	wait_for_readers($admin, 1);
	$do->($session);
	is($session->answer->{code}, $code, $name);
	wait_for_readers($admin, 0);
}
my $gone = app_of($standby, options => "-c weir.min_lsn=$token -c weir.lsn_wait_timeout=60s");
$gone->send('SELECT 1');
wait_for_readers($admin, 1);
$gone->vanish;
wait_for_readers($admin, 0);
pass('a client that goes away');
my $hurried = app_of($standby, options => "-c weir.min_lsn=$token -c weir.lsn_wait_timeout=60s -c statement_timeout=100");
is($hurried->send('SELECT 1')->answer->{message}, 'canceling statement due to statement timeout', 'statement_timeout');

# The launcher may die: waiters look for themselves.
my $launcher = q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir launcher'};
my $patient = app_of($standby, options => "-c weir.min_lsn=$token -c weir.lsn_wait_timeout=60s");
$patient->send('SELECT max(i) FROM t');
wait_for_readers($admin, 1);
my $launcher_pid = $admin->value($launcher);
kill 'STOP', $launcher_pid;
resume($admin);
is(last_row($patient->answer), $i, 'with a launcher that stands still one reads the write all the same');
kill 'CONT', $launcher_pid;

# ---- a primary has what it wrote; LSNs of the future are an error

$writer->query("SET weir.min_lsn = '$token'");
is($writer->value('SELECT max(i) FROM t'), $i, 'on the primary: at once');
$writer->query("SET weir.min_lsn = 'FFFF/0'");
$answer = $writer->send('SELECT 1')->answer;
is($answer->{code}, '55000', 'an LSN of the future');
like($answer->{message}, qr/in the future of this primary/, 'says so');
is($writer->send("SELECT weir.lsn_reached('0/1\@7')")->answer->{code}, '55000', 'a timeline of the future');
$writer->query('RESET weir.min_lsn');

# A lost write: the standby that is promoted never got it.
poll_until('caught up', sub { $admin->value("SELECT weir.lsn_reached('$token')") eq 't' });
my $other_admin = admin_of($other);
$standby->stop;
my $lost = next_row(++$i);
poll_until('the other one has it', sub { $other_admin->value("SELECT weir.lsn_reached('$lost')") eq 't' });
$primary->stop('immediate');
$standby->append_conf('postgresql.conf', "primary_conninfo = ''");
$standby->start;
$admin = admin_of($standby);
my @lost = map { app_of($standby, options => "-c weir.min_lsn=$_ -c weir.lsn_wait_timeout=60s") } $lost, $lost =~ s/@.*//r;
$_->send('SELECT max(i) FROM t') foreach @lost;
wait_for_readers($admin, 2);
$standby->promote;
foreach my $session (@lost)
{
	$answer = $session->answer;
	is($answer->{code}, '55000', 'who waits for a lost write through a promotion is told');
	like($answer->{message}, qr/not part of this server's history/, 'what happened');
}
wait_for_readers($admin, 0);
my $after = app_of($standby);
$after->query('INSERT INTO t SELECT generate_series(1000, 20000)');
my $new = $after->value('SELECT weir.last_commit_token()');
like($new, qr/\@2$/, 'tokens carry the new timeline');
is($after->send("SELECT weir.lsn_reached('$lost')")->answer->{code}, '55000', 'a token of a lost write stays an error');
is($after->value("SELECT weir.lsn_reached('$token')"), 't', 'one of a kept write is reached');
is($other_admin->value("SELECT weir.lsn_reached('$new')"), 'f', 'a standby of the old timeline waits for the new one');

done_testing();
