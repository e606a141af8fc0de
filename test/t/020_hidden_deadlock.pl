# The hidden deadlock: a slot holder waits for somebody who waits for a slot, and the deadlock detector cannot see
# slots. Each variant must resolve by itself.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

# The variants resolve by one remedy each: what a test is not about is switched off (lending: weir.idle_yield = -1;
# suspension: weir.stall_timeout = 0).
my $node = gated_node('deadlock', deadlock_timeout => '200ms');
my $admin = admin_of($node);
$admin->query($_)
  foreach 'CREATE TABLE t (i int PRIMARY KEY, j int)',
  'INSERT INTO t VALUES (1, 0)', 'ALTER TABLE t OWNER TO app', 'CREATE ROLE worker LOGIN',
  'GRANT ALL ON t TO worker', "ALTER ROLE worker SET weir.class = 'batch'";

my ($holder, $waiter, $third) = map { app_of($node) } 1 .. 3;
my $over = 0;

# A test: $waiter is let in over the limit, both end without an error.
sub is_rescued
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	foreach my $of ([ 'waiter', $waiter ], [ 'holder', $holder ])
	{
		my ($who, $session) = @$of;
		my $answer = $session->answer;
		is($answer && $answer->{code}, '', "$name: the $who goes on");
	}
	return is(admission($admin, 'admitted_over_limit'), ++$over, "$name: admitted over the limit, once");
}

# ---- an autocommit statement queued with its relation lock

$waiter->parse('select', 'SELECT * FROM t');
$waiter->parse('insert', 'INSERT INTO t SELECT max(i) + 1 FROM t');
foreach my $ddl ('ALTER TABLE t ADD k int', 'ALTER TABLE t DROP j', 'LOCK TABLE t', 'TRUNCATE t')
{
	foreach my $name ('select', 'insert')
	{
		$holder->query('BEGIN');
		$waiter->execute($name);
		wait_for_waiting($admin, 1);
		$holder->send($ddl);
		is_rescued("$ddl against a prepared $name");
		$holder->query('ROLLBACK');
	}
}
nothing_left($admin, 'relation locks');

# The slot holder is an autocommit utility statement, which waits for the waiter's virtual transaction.
$holder->query('SELECT 1');
$admin->query('BEGIN');
$admin->query('LOCK TABLE t IN SHARE UPDATE EXCLUSIVE MODE');
$holder->send('CREATE INDEX CONCURRENTLY t_j ON t (j)');
poll_until('it has the slot', sub { $holder->state($admin) eq 'active' });
$waiter->execute('insert');
wait_for_waiting($admin, 1);
$admin->query('COMMIT');
is_rescued('CREATE INDEX CONCURRENTLY in a slot');

# One without a slot stands between: the holder queues behind a superuser's DDL, which waits for the waiter.
$holder->query('BEGIN');
$waiter->execute('insert');
wait_for_waiting($admin, 1);
my $dba = admin_of($node);
$dba->send('ALTER TABLE t ADD k int');
poll_until('the DDL waits', sub { $admin->value('SELECT count(*) FROM pg_locks WHERE NOT granted') == 1 });
$holder->send('SELECT * FROM t');
is_rescued('a superuser\'s DDL in between');
is($dba->answer->{code}, '', 'the superuser goes on');
$holder->query('COMMIT');
nothing_left($admin, 'locks in a chain');

# ---- a session-level advisory lock, held by one who waits at BEGIN

$waiter->query('SELECT pg_advisory_lock(1)');
$holder->query('BEGIN');
$waiter->send('BEGIN');
wait_for_waiting($admin, 1);
$third->send('BEGIN');
wait_for_waiting($admin, 2);
$holder->send('SELECT pg_advisory_xact_lock(1)');
my $answer = $waiter->answer;
is($answer && $answer->{tag}, 'BEGIN', 'advisory lock: its holder is let in');
ok(!$third->answered, 'one that blocks nobody waits on');
ok(!$holder->answered, 'and so does the slot holder');
$waiter->query('SELECT pg_advisory_unlock(1)');
is($holder->answer->{code}, '', 'advisory lock: the slot holder goes on');
is(admission($admin, 'admitted_over_limit'), ++$over, 'advisory lock: admitted over the limit, once');
$_->query('COMMIT') foreach $waiter, $holder;
is($third->answer->{tag}, 'BEGIN', 'then the next one comes');
$third->query('COMMIT');
nothing_left($admin, 'advisory lock');

# ---- idle in transaction: its slot was lent, and the borrower waits for its row

reconfigure($admin, 'weir.idle_yield' => '5ms');
my $idle = $third;
$idle->query($_) foreach 'BEGIN', 'UPDATE t SET j = 1 WHERE i = 1';
$holder->send('UPDATE t SET j = 2 WHERE i = 1');
poll_until('the borrower waits for the row',
	sub { $admin->value('SELECT count(*) FROM pg_locks WHERE NOT granted') == 1 });
$waiter->send('UPDATE t SET j = 3 WHERE i = 1');
wait_for_waiting($admin, 1);
is($idle->state($admin), 'lent', 'idle in transaction: its slot is lent');
answers_at_once($idle, 'UPDATE t SET j = j + 1 WHERE i = 1', 'it speaks again: it runs at once');
answers_at_once($idle, 'COMMIT', 'and ends');
is($_->answer->{code}, '', 'a writer of the same row goes on') foreach $holder, $waiter;
is($admin->value('SELECT j FROM t WHERE i = 1'), 3, 'one after the other');
is(admission($admin, 'admitted_over_limit'), $over, 'nobody had to be admitted over the limit');
nothing_left($admin, 'idle in transaction');
reconfigure($admin, 'weir.idle_yield' => -1);

# ---- every slot is stalled by what no lock table shows: the client itself waits for the waiter

# What the log says of the limit since $offset.
sub log_of_suspension
{
	my ($offset) = @_;
	return join ' ', slurp_file($node->logfile, $offset) =~ /pg_weir: (limit suspended|limit in force again)/g;
}

reconfigure($admin, 'weir.max_active' => 2, 'weir.stall_timeout' => '300ms');
my $log = -s $node->logfile;
my ($first, $second) = map { app_of($node) } 1 .. 2;
$first->query('BEGIN');
$second->send('SELECT pg_sleep(1000)');
poll_until('it sleeps', sub { admission($admin, 'active') == 2 });
$waiter->send('SELECT 1');
$answer = $waiter->answer;
is($answer && $answer->{code}, '', 'all slots stalled: the waiter goes on');
is($admin->value("SELECT concat_ws(' ', suspensions, suspended, lent) FROM weir.stat_admission"),
	'1 2 2', 'counted, and two are not counted any more');
like(slurp_file($node->logfile, $log),
	qr/LOG:  pg_weir: limit suspended: all 2 transaction slots were stalled for 300 ms\n.*DETAIL:  2 more transactions may run until half of the stalled ones have ended\./,
	'and logged');

# Two run in their place, not everybody: when these stall too, that is a suspension of its own.
$admin->query('SELECT pg_advisory_lock(2)');
my @more = map { app_of($node) } 1 .. 4;
$_->send('SELECT pg_advisory_xact_lock(2)') foreach @more;
poll_until('all of them run', sub { admission($admin, 'lent') == 4 && admission($admin, 'active') == 2 });
is($admin->value("SELECT concat_ws(' ', suspensions, suspended, waiting) FROM weir.stat_admission"),
	'2 4 0', 'the next two are let in by the next suspension');
is(admission($admin, 'limit_now'), 2, 'the limit is what it was');

$first->query('COMMIT');
is(admission($admin, 'suspended'), 4, 'one of four has ended: still suspended');
$admin->query('SELECT pg_cancel_backend(' . $second->pid . ')');
is($second->answer->{code}, '57014', 'another is cancelled');
poll_until('half of them are gone', sub { admission($admin, 'suspended') == 0 });
is(log_of_suspension($log), 'limit suspended limit suspended limit in force again', 'half of them are gone: the limit is in force again');
$admin->query('SELECT pg_advisory_unlock(2)');
is($_->answer->{code}, '', 'the stalled go on when they can') foreach @more;
nothing_left($admin, 'suspension');

# ---- the same when they wait in another extension, for connections of theirs to this server

$admin->query($_) foreach 'CREATE EXTENSION dblink', 'GRANT EXECUTE ON FUNCTION dblink_connect_u(text, text) TO app';
my $itself = sprintf 'host=%s port=%s dbname=postgres user=app', $node->host, $node->port;
$_->query("SELECT dblink_connect_u('itself', '$itself')") foreach $first, $second;
$_->query('BEGIN') foreach $first, $second;    # or one connection may be served before the other session has its slot
$_->send(q{SELECT i FROM dblink('itself', 'SELECT 1') AS t(i int)}) foreach $first, $second;
is(join(' ', map { ($_->answer // { code => 'none' })->{code} } $first, $second), ' ', 'all slots wait for connections that wait for a slot: they go on');
is(admission($admin, 'suspensions'), 3, 'by a suspension');
$_->query('COMMIT') foreach $first, $second;
poll_until('it ends', sub { admission($admin, 'suspended') == 0 });
$_->query("SELECT dblink_disconnect('itself')") foreach $first, $second;
nothing_left($admin, 'dblink');

# ---- the same within a class that has a limit of its own

reconfigure(
	$admin,
	'weir.classes' => 'batch: max_active=1',
	'weir.max_active' => 10,
	'weir.stall_timeout' => '300ms');
$log = -s $node->logfile;
my ($batch_holder, $batch_waiter) = map { app_of($node, user => 'worker') } 1 .. 2;
$batch_holder->query('BEGIN');
$first->query('BEGIN');
$batch_waiter->send('SELECT 1');
wait_for_waiting($admin, 1);
answers_at_once($second, 'SELECT 1', 'the other classes are not touched');
$answer = $batch_waiter->answer;
is($answer && $answer->{code}, '', 'a class whose slots are all stalled: its waiter goes on');
is($batch_holder->state($admin), 'lent', 'the stalled one lends');
is($first->state($admin), 'active', 'the stalled one of another class does not');
is($admin->value("SELECT concat_ws(' ', suspensions, suspended) FROM weir.stat_admission"), '4 1', 'counted');
like(slurp_file($node->logfile, $log), qr/limit suspended: all 1 transaction slots of class batch were stalled/, 'and logged');
$batch_holder->query('COMMIT');
$first->query('COMMIT');
poll_until('the limit is in force', sub { admission($admin, 'suspended') == 0 });
is(log_of_suspension($log), 'limit suspended limit in force again', 'start and end are logged');
nothing_left($admin, 'suspension of a class');

# ---- the same in what the reserves of the classes leave

reconfigure(
	$admin,
	'weir.classes' => 'batch: reserved=2',
	'weir.max_active' => 4,
	'weir.stall_timeout' => '300ms');
$batch_holder->query($_) foreach 'BEGIN', 'SELECT 1';
$batch_waiter->send('SELECT count(*) FROM generate_series(1, 1000000000)');    # works, in the reserve
poll_until('it works', sub { $batch_waiter->state($admin) eq 'active' });
$_->query('BEGIN') foreach $first, $second;
$waiter->send('SELECT 1');
$answer = $waiter->answer;
is($answer && $answer->{code}, '', 'all slots outside a reserve stalled: the waiter goes on');
is(join(' ', map { $_->state($admin) } $first, $second, $batch_waiter), 'lent lent active', 'the stalled lend');
$admin->query('SELECT pg_cancel_backend(' . $batch_waiter->pid . ')');
is($batch_waiter->answer->{code}, '57014', 'a transaction that worked is cancelled');
$_->query('COMMIT') foreach $first, $second, $batch_holder;
nothing_left($admin, 'suspension beside a reserve');

done_testing();
