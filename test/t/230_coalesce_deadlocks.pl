# Nobody waits for ever, and nobody writes what they could not: coalescing beside DDL, beside sessions that hold a row, a key or
# a parent, in pipelines, and under every restriction of privileges. Clients write all the while, and at the end what they
# were told is compared with what is there.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Faults;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = gated_node(
	'deadlocks',
	'weir.max_active' => 16,
	'weir.idle_yield' => '5ms',
	'weir.stall_timeout' => '1s',
	'max_connections' => 120,
	'fsync' => 'on',
	'log_statement' => 'none',
	'deadlock_timeout' => '200ms',
	'max_worker_processes' => 16);
skip_without_coalescing($node);
my $admin = admin_of($node);

# What takes a moment when nobody is in the way, and at most a few batches and lock timeouts when everybody is.
my $soon_s = 3;

# Counter 9 is nobody's but this test's.
Faults::make_tables($admin, coalesced => 1, counters => 9);
my $clients = Faults->start($node, clients => 24, counters => 8, seed => 1);
$clients->go;
$clients->progress(500);

# A test: whoever is meant gets an answer soon. Returns it.
sub answered_soon
{
	my ($session, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $began = Time::HiRes::time();
	my $answer = $session->answer($soon_s);
	note(sprintf('%s: %.0f ms', $name, 1000 * (Time::HiRes::time() - $began)));
	ok($answer, "$name: soon") or $answer = $session->answer;
	return $answer // { code => 'none', message => 'no answer', rows => [], tag => '' };
}

# A test: the clients go on, at a rate that is no crawl from timeout to timeout.
sub they_go_on
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $took_s = eval { $clients->progress(200) };
	return ok(defined $took_s && $took_s < $soon_s, "$name: the clients go on")
	  || diag(defined $took_s ? "$took_s s for 200" : 'they do not');
}

# ---- what queues for the table behind clients that wait for their batch

my $ddl = admin_of($node);
foreach my $round (1 .. 3)
{
	foreach my $sql (
		'VACUUM FULL faults_rows',
		'VACUUM FULL faults_counters',
		'CREATE INDEX extra ON faults_rows (payload)',
		'REINDEX TABLE faults_rows',
		'DROP INDEX extra',
		'ALTER TABLE faults_rows ADD COLUMN extra int NOT NULL DEFAULT 7',
		'ALTER TABLE faults_rows ALTER COLUMN payload TYPE varchar(1000)',
		'ALTER TABLE faults_rows DROP COLUMN extra',
		'ALTER TABLE faults_rows ALTER COLUMN payload TYPE text',
		'ALTER TABLE faults_counters ADD CHECK (n >= 0)',
		'LOCK TABLE faults_rows IN SHARE MODE',
		'LOCK TABLE faults_counters, faults_rows',
		'CREATE TRIGGER late BEFORE UPDATE ON faults_counters FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()',
		'DROP TRIGGER late ON faults_counters',
		"SELECT weir.uncoalesce_table('faults_rows')",
		"SELECT weir.coalesce_table('faults_rows')",
		'CREATE INDEX CONCURRENTLY extra ON faults_rows (payload)',
		'DROP INDEX CONCURRENTLY extra')
	{
		my $in_block = $sql =~ /^LOCK/;
		$ddl->query('BEGIN') if $in_block;
		my $answer = answered_soon($ddl->send($sql), "$round, $sql");
		is($answer->{code}, '', "$round, $sql: done") || diag($answer->{message});
		$ddl->query('COMMIT') if $in_block;
		they_go_on("$round, $sql");
	}
}
$clients->is_right('through DDL');
$clients->go;

# ---- idle in transaction, holding what a request needs

my $holder = app_of($node);
my @waiters = map { app_of($node) } 1 .. 12;

# A test: $hold's session holds something until $end; the waiters' $sql waits; the clients go on; the waiters are answered
# soon after the end.
sub is_held
{
	my ($name, $hold, $sql, $end) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$holder->query('BEGIN');
	$holder->query($hold);
	$_->send($sql) foreach @waiters;
	wait_for_lock($admin, $_) foreach @waiters;
	they_go_on("$name: held");
	$waiters[0]->answered and fail("$name: it was answered");
	$holder->query($end);
	return map { answered_soon($_, "$name: $end") } @waiters;
}

sub codes { return join ' ', map { $_->{code} || $_->{tag} } @_ }

my $increment = 'UPDATE faults_counters SET n = n + 1 WHERE id = 9';
foreach my $end ('COMMIT', 'ROLLBACK')
{
	my $before = $admin->value('SELECT n FROM faults_counters WHERE id = 9');
	my @answers = is_held('a row', 'UPDATE faults_counters SET n = n + 1 WHERE id = 9', $increment, $end);
	is(codes(@answers), join(' ', ('UPDATE 1') x @waiters), "a row: all are answered");
	is($admin->value('SELECT n FROM faults_counters WHERE id = 9') - $before, @waiters + ($end eq 'COMMIT'), 'a row: each counts once');
}
{
	my @answers = is_held('a row deleted', 'DELETE FROM faults_counters WHERE id = 9', $increment, 'COMMIT');
	is(codes(@answers), join(' ', ('UPDATE 0') x @waiters), 'a row deleted: none is there');
	$admin->query('INSERT INTO faults_counters VALUES (9, 0)');
	@answers = is_held('a key changed', 'UPDATE faults_counters SET id = 10 WHERE id = 9', $increment, 'COMMIT');
	is(codes(@answers), join(' ', ('UPDATE 0') x @waiters), 'a key changed: none is there');
	$admin->query('UPDATE faults_counters SET id = 9 WHERE id = 10');
}
{
	my $sql = "INSERT INTO faults_rows (client, number, part, tag) VALUES (-2, 0, 0, 'held')";
	my @answers = is_held('a unique key', $sql, $sql, 'COMMIT');
	is(codes(@answers), join(' ', ('23505') x @waiters), 'a unique key: it is there');
	is($answers[0]{constraint}, 'faults_rows_tag_key', 'a unique key: says which');
	$admin->query("DELETE FROM faults_rows WHERE tag = 'held'");
	@answers = is_held('a unique key', $sql, $sql, 'ROLLBACK');
	is(join(' ', sort split ' ', codes(@answers) =~ s/INSERT 0 1/INSERT/r), join(' ', ('23505') x $#waiters, 'INSERT'), 'a unique key: one gets it');
	$admin->query("DELETE FROM faults_rows WHERE tag = 'held'");
}
{
	$admin->query($_)
	  foreach 'CREATE TABLE parent (id int PRIMARY KEY)', 'INSERT INTO parent VALUES (1), (2)',
	  'CREATE TABLE child (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, parent int REFERENCES parent)',
	  'ALTER TABLE parent OWNER TO app', 'ALTER TABLE child OWNER TO app';
	opt_in($admin, 'child');
	my $sql = 'INSERT INTO child (parent) VALUES (1)';
	my @answers = is_held('a parent row', 'DELETE FROM parent WHERE id = 1', $sql, 'ROLLBACK');
	is(codes(@answers), join(' ', ('INSERT 0 1') x @waiters), 'a parent row: it stays');
	$admin->query('DELETE FROM child');
	@answers = is_held('a parent row', 'DELETE FROM parent WHERE id = 1', $sql, 'COMMIT');
	is(codes(@answers), join(' ', ('23503') x @waiters), 'a parent row: it is gone');
	is($admin->value('SELECT count(*) FROM child'), 0, 'a parent row: no orphan');
	$holder->query('BEGIN');
	$holder->query('DELETE FROM parent WHERE id = 2');
	$waiters[0]->send('INSERT INTO child (parent) VALUES (2)');
	wait_for_lock($admin, $waiters[0]);
	$admin->query('SELECT pg_cancel_backend(' . $waiters[0]->pid . ')');
	is(answered_soon($waiters[0], 'cancelled while it waits')->{code}, '57014', 'cancelled while it waits');
	$waiters[1]->send('INSERT INTO child (parent) VALUES (2)');
	wait_for_lock($admin, $waiters[1]);
	$admin->query('SELECT pg_terminate_backend(' . $waiters[1]->pid . ')');
	is(answered_soon($waiters[1], 'terminated while it waits')->{code}, '57P01', 'terminated while it waits');
	$holder->query('ROLLBACK');
	is($admin->value('SELECT count(*) FROM child'), 0, 'nothing of theirs is there');
	$waiters[1] = app_of($node);
	# A parent that was held is not waited for again for a second.
	poll_until(
		'a batch with a parent that nobody holds',
		sub {
			$_->send('INSERT INTO child (parent) VALUES (2)') foreach @waiters;
			my $told = codes(map { $_->answer } @waiters);
			is($told, join(' ', ('INSERT 0 1') x @waiters), 'with a parent that nobody holds') if $told ne join(' ', ('INSERT 0 1') x @waiters);
			$admin->value(q{SELECT coalesce(sum(requests), 0) FROM weir.stat_coalesce WHERE relation = 'child'::regclass}) > 0 || $ENV{WITHOUT_COALESCING};
		});
	$admin->query('DELETE FROM child');
}

# Ordinary transactions take rows in both orders of a batch's, one after the other in each: nobody who is not a worker could be
# in a deadlock with them, so nobody may be told of one.
$admin->query('CREATE TABLE pair (id int PRIMARY KEY, n int)');
$admin->query('INSERT INTO pair SELECT generate_series(1, 4), 0');
$admin->query('ALTER TABLE pair OWNER TO app');
opt_in($admin, 'pair');
foreach my $timeout ('200ms', '20ms')
{
	$admin->query("ALTER ROLE app SET weir.coalesce = on");
	$admin->query("ALTER SYSTEM SET deadlock_timeout = '$timeout'");
	$admin->query('SELECT pg_reload_conf()');
	poll_until('the timeout is in force', sub { admin_of($node)->value('SHOW deadlock_timeout') eq $timeout });
	my %codes;
	my ($count, $before) = (0, $admin->value('SELECT sum(n) FROM pair'));
	my $ordinary = app_of($node);
	foreach my $round (1 .. 60)
	{
		my ($first, $last) = $round % 2 ? (1, 4) : (4, 1);
		$ordinary->query('BEGIN');
		$codes{ $ordinary->send("UPDATE pair SET n = n + 1 WHERE id = $first")->answer->{code} }++;
		foreach my $i (0 .. $#waiters)
		{
			$waiters[$i]->send('UPDATE pair SET n = n + 1 WHERE id = ' . (1 + $i % 4));
		}
		Time::HiRes::usleep(rand 30_000);    # of a transaction's life
		$codes{ $ordinary->send("UPDATE pair SET n = n + 1 WHERE id = $last")->answer->{code} }++;
		my $told = $ordinary->send('COMMIT')->answer;
		$count += 2 if $told->{tag} eq 'COMMIT';
		foreach my $answer (map { $_->answer } @waiters)
		{
			$codes{ $answer->{code} }++;
			$count++ unless $answer->{code};
		}
	}
	is(join(' ', sort keys %codes), '', "deadlock_timeout = $timeout: nobody is told of a deadlock")
	  || diag(join ', ', map { "$_: $codes{$_}" } sort keys %codes);
	is($admin->value('SELECT sum(n) FROM pair') - $before, $count, "deadlock_timeout = $timeout: each update counts once");
}

$clients->is_right('beside holders');

# ---- a worker that stands still: at rest, because one that is stopped at work holds the server's own locks

SKIP: {
	skip 'no worker', 3 if $ENV{WITHOUT_COALESCING};
	my $worker = $admin->value("SELECT pid FROM pg_stat_activity WHERE backend_type LIKE 'pg_weir coalescer%'");
	ok($worker, 'there is a worker');
	poll_until('it rests', sub { $admin->value("SELECT wait_event FROM pg_stat_activity WHERE pid = $worker") eq 'Extension' });
	kill 'STOP', $worker;
	$_->send('INSERT INTO child (parent) VALUES (2)') foreach @waiters;
	is(codes(map { answered_soon($_, 'beside a worker that stands still') } @waiters),
		join(' ', ('INSERT 0 1') x @waiters), 'beside a worker that stands still: done');
	kill 'CONT', $worker;
}
$clients->go;
they_go_on('after a worker stood still');
unless ($ENV{WITHOUT_COALESCING})
{
	my $before = coalesced_requests($admin, 'faults_rows');
	my $began = Time::HiRes::time();
	poll_until('it is trusted with requests again', sub { coalesced_requests($admin, 'faults_rows') > $before + 10 });
	note(sprintf('after %.1f s', Time::HiRes::time() - $began));
}

# ---- pipelines

my $row = 'INSERT INTO faults_rows (client, number, part, tag) VALUES (-3, $1, 0, $2)';
$admin->query("INSERT INTO faults_rows (client, number, part, tag) VALUES (-2, 0, 0, 'taken')");
my $pipe = app_of($node);
foreach my $how (qw(pipeline pipeline_in_steps))
{
	foreach my $round (1 .. 10)
	{
		my $name = "$how $round";
		my $number = 10 * length($how) + $round;
		my $before = $admin->value('SELECT n FROM faults_counters WHERE id = 9');
		my $answer = answered_soon($pipe->$how([ $row, $number, undef ], [ $increment ], [ $row, $number, 'taken' ]), $name);
		is($answer->{code}, '23505', "$name: its last statement fails");
		is($admin->value("SELECT count(*) FROM faults_rows WHERE client = -3 AND number = $number"), 0, "$name: none of it is there");
		is($admin->value('SELECT n FROM faults_counters WHERE id = 9'), $before, "$name: nor its update");
		$answer = answered_soon($pipe->$how(map { [ $row, $number, undef ] } 1 .. 3), $name);
		is("@{$answer->{tags}}", 'INSERT 0 1 INSERT 0 1 INSERT 0 1', "$name: as many as it says");
		is($admin->value("SELECT count(*) FROM faults_rows WHERE client = -3 AND number = $number"), 3, "$name: all of it is there");
	}
}
foreach my $round (1 .. 5)
{
	my $gone = app_of($node);
	my $pid = $gone->pid;
	$gone->unsynced($row, 1000 + $round, undef)->vanish;
	poll_until('its server process is gone', sub { !$admin->value("SELECT count(*) FROM pg_stat_activity WHERE pid = $pid") });
	is($admin->value('SELECT count(*) FROM faults_rows WHERE client = -3 AND number = ' . (1000 + $round)), 0, "never synced, $round: never committed");
}

# ---- privileges: the same on a table that is opted in and on one that is not

my @sides = qw(opted plain);
$admin->query("CREATE ROLE $_ LOGIN") foreach qw(nobody columns tenant boss mallory);
$admin->query('GRANT tenant TO boss');
$admin->query('GRANT nobody TO boss');
foreach my $side (@sides)
{
	$admin->query($_)
	  foreach "CREATE SCHEMA $side", "GRANT USAGE ON SCHEMA $side TO PUBLIC", "SET search_path = $side",
	  'CREATE TABLE docs (id int PRIMARY KEY, owner text DEFAULT current_setting(\'app.tenant\', true), body text)',
	  'ALTER TABLE docs ENABLE ROW LEVEL SECURITY',
	  "CREATE POLICY own ON docs USING (owner = current_setting('app.tenant', true)) WITH CHECK (owner = current_setting('app.tenant', true))",
	  "INSERT INTO docs SELECT i, CASE WHEN i % 2 = 0 THEN 'even' ELSE 'odd' END, 'x' FROM generate_series(1, 20) AS i",
	  'GRANT SELECT, INSERT, UPDATE, DELETE ON docs TO tenant',
	  'CREATE TABLE secret (id int PRIMARY KEY, a int DEFAULT 1, b int DEFAULT 2)',
	  'INSERT INTO secret SELECT generate_series(1, 20)',
	  'GRANT SELECT (id, a), INSERT (id, a), UPDATE (a) ON secret TO columns',
	  'GRANT SELECT ON secret TO nobody', 'GRANT ALL ON secret TO boss';
}
$admin->query('RESET search_path');
opt_in($admin, 'opted.docs', 'opted.secret');

# What $statements are answered, on one side, by one of several sessions that send the same: together, for company.
sub answers_of
{
	my ($side, $role, @statements) = @_;
	my $session = app_of($node, user => $role);
	$session->query("SET search_path = $side");
	my @told;
	foreach my $statement (@statements)
	{
		my ($sql, @parameters) = ref $statement ? @$statement : $statement;
		my $answer = @parameters ? $session->extended($sql, @parameters)->answer : $session->send($sql)->answer;
		push @told, join ' ', $answer->{code}, $answer->{message} // '', $answer->{tag} // '', map { join ',', map { $_ // 'NULL' } @$_ } @{ $answer->{rows} };
	}
	$session->close;
	return \@told;
}

my %attempts = (
	nobody => [
		'INSERT INTO secret VALUES (100)', [ 'INSERT INTO secret VALUES ($1)', 101 ], 'UPDATE secret SET a = 5 WHERE id = 1',
		[ 'UPDATE secret SET a = 5 WHERE id = $1', 1 ], 'DELETE FROM secret WHERE id = 1' ],
	columns => [
		'INSERT INTO secret (id, a) VALUES (200, 1)', [ 'INSERT INTO secret (id, a) VALUES ($1, 1)', 201 ],
		'INSERT INTO secret (id, b) VALUES (202, 1)', [ 'INSERT INTO secret (id, b) VALUES ($1, 1)', 203 ],
		'INSERT INTO secret (id) VALUES (204) RETURNING b', 'INSERT INTO secret (id) VALUES (205) RETURNING a',
		'UPDATE secret SET a = 9 WHERE id = 2', 'UPDATE secret SET b = 9 WHERE id = 2', 'UPDATE secret SET a = b WHERE id = 2',
		[ 'UPDATE secret SET a = a + 1 WHERE id = $1', 3 ], [ 'UPDATE secret SET a = 1 WHERE id = $1 AND b = 2', 3 ],
		'DELETE FROM secret WHERE id = 2' ],
	tenant => [
		"INSERT INTO docs VALUES (300, 'even', 'no tenant')", "SET app.tenant = 'even'", "INSERT INTO docs VALUES (301, 'even', 'a')",
		"INSERT INTO docs VALUES (302, 'odd', 'a')", [ 'INSERT INTO docs VALUES ($1, $2, $3)', 303, 'odd', 'a' ],
		[ 'INSERT INTO docs VALUES ($1, $2, $3)', 304, 'even', 'a' ], 'INSERT INTO docs (id) VALUES (305) RETURNING owner',
		"UPDATE docs SET body = 'mine' WHERE id = 2", "UPDATE docs SET body = 'mine' WHERE id = 3",
		[ 'UPDATE docs SET body = $1 WHERE id = $2', 'mine', 5 ], [ 'UPDATE docs SET body = $1 WHERE id = $2', 'mine', 6 ],
		"UPDATE docs SET owner = 'odd' WHERE id = 2", 'DELETE FROM docs WHERE id = 7', 'DELETE FROM docs WHERE id = 8',
		"SET app.tenant = 'odd'", "INSERT INTO docs VALUES (306, 'even', 'a')", "INSERT INTO docs VALUES (307, 'odd', 'a')",
		[ 'UPDATE docs SET body = $1 WHERE id = $2', 'mine', 5 ], [ 'UPDATE docs SET body = $1 WHERE id = $2', 'mine', 6 ],
		"INSERT INTO docs VALUES (301, 'odd', 'whose is it')" ],
	boss => [
		'INSERT INTO secret VALUES (400)', 'SET ROLE nobody', 'INSERT INTO secret VALUES (401)', 'UPDATE secret SET a = 7 WHERE id = 4',
		'RESET ROLE', 'UPDATE secret SET a = 7 WHERE id = 4', 'SET ROLE tenant', "SET app.tenant = 'odd'",
		"INSERT INTO docs VALUES (402, 'odd', 'b')", "INSERT INTO docs VALUES (403, 'even', 'b')", 'INSERT INTO secret VALUES (404)',
		'RESET ROLE', "INSERT INTO docs VALUES (405, 'odd', 'b')" ]);
foreach my $role (sort keys %attempts)
{
	my @statements = @{ $attempts{$role} };
	my ($opted, $plain) = map { answers_of($_, $role, @statements) } @sides;
	is_deeply($opted, $plain, "$role: may do and is told the same");
	ok((grep { /^42501|UPDATE 0|DELETE 0/ } @$plain), "$role: something is refused");
}
foreach my $table (qw(docs secret))
{
	my ($opted, $plain) = map { $admin->query("SELECT * FROM $_.$table ORDER BY 1") } @sides;
	is_deeply($opted, $plain, "$table: the same is there");
}

# A grant that is taken away while a statement is prepared.
{
	my $session = app_of($node, user => 'columns');
	$session->parse('s', 'UPDATE opted.secret SET a = a + 1 WHERE id = $1');
	is($session->execute('s', 5)->answer->{tag}, 'UPDATE 1', 'with the grant') foreach 1 .. 8;
	$admin->query('REVOKE UPDATE (a) ON opted.secret FROM columns');
	is($session->execute('s', 5)->answer->{code}, '42501', 'without it');
}

# A table's owner whose index is a trap for whoever writes: it runs as what the owner is, at most.
{
	$admin->query($_)
	  foreach 'CREATE SCHEMA trap AUTHORIZATION mallory', 'GRANT USAGE ON SCHEMA trap TO PUBLIC', 'SET ROLE mallory',
	  'CREATE TABLE trap.spy (who text, restricted text)', 'GRANT ALL ON trap.spy TO PUBLIC',
	  'CREATE FUNCTION trap.spring() RETURNS void LANGUAGE plpgsql AS $$ DECLARE told text := $t$done$t$; BEGIN
		BEGIN EXECUTE \'SET SESSION AUTHORIZATION DEFAULT\'; EXCEPTION WHEN OTHERS THEN NULL; END;
		BEGIN EXECUTE \'RESET ROLE\'; EXCEPTION WHEN OTHERS THEN NULL; END;
		BEGIN EXECUTE \'ALTER ROLE mallory SUPERUSER\'; EXCEPTION WHEN OTHERS THEN told := SQLSTATE; END;
		INSERT INTO trap.spy VALUES (current_user, told); END $$',
	  'CREATE FUNCTION trap.of(i int) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring(); RETURN i; END $$',
	  'CREATE FUNCTION trap.definer(i int) RETURNS int IMMUTABLE SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN PERFORM trap.spring(); RETURN i; END $$',
	  'CREATE TABLE trap.bait (id bigint GENERATED BY DEFAULT AS IDENTITY, i int)', 'CREATE INDEX ON trap.bait (trap.of(i))',
	  'CREATE INDEX ON trap.bait (trap.definer(i))', 'GRANT ALL ON trap.bait TO PUBLIC', 'RESET ROLE';
	opt_in($admin, 'trap.bait');
	foreach my $round (1 .. 20)
	{
		$_->send("INSERT INTO trap.bait (i) VALUES ($round)") foreach @waiters;
		$_->answer foreach @waiters;
	}
	is($admin->value('SELECT count(*) FROM trap.bait'), 20 * @waiters, 'a trap: the rows are there');
	is($admin->value("SELECT string_agg(DISTINCT who, ' ' ORDER BY who) FROM trap.spy WHERE who NOT IN ('app', 'mallory')"), '',
		'a trap: nobody else stepped into it');
	is($admin->value("SELECT rolsuper FROM pg_roles WHERE rolname = 'mallory'"), 'f', 'a trap: she has not become superuser');
	is($admin->value("SELECT string_agg(DISTINCT restricted, ' ') FROM trap.spy"), '42501', 'a trap: because she may not');
}

$clients->is_right('at the end');
$clients->stop;
$_->close foreach @waiters, $holder, $pipe;
nothing_left($admin, 'at the end');
is_coalesced($admin, $_, 100) foreach qw(faults_rows faults_counters);
is_coalesced($admin, $_, 1) foreach qw(child pair trap.bait opted.docs opted.secret);

done_testing();
