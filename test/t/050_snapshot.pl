# Who waits holds back nobody's vacuum: no snapshot is held in the queue, and the statement that waited sees what was
# committed meanwhile. For every kind of statement, and every way to send it.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = gated_node('snapshot', 'weir.superuser_bypass' => 'on');
my $admin = admin_of($node);
$admin->query($_) foreach
  'CREATE TABLE fresh (i int PRIMARY KEY)',
  'INSERT INTO fresh VALUES (1)',
  'CREATE TABLE seen (i int)',
  'CREATE TABLE one (i int)',
  'INSERT INTO one VALUES (0)',
  'CREATE TABLE ruled (i int)',
  'CREATE RULE also AS ON INSERT TO ruled DO ALSO INSERT INTO seen SELECT max(i) FROM fresh',
  'CREATE TABLE dead (i int)',
  'CREATE FUNCTION volatile_max() RETURNS int LANGUAGE sql VOLATILE AS $$SELECT max(i) FROM fresh$$',
  'CREATE FUNCTION inlined_max() RETURNS SETOF int LANGUAGE sql STABLE AS $$SELECT max(i) FROM fresh$$',
  'CREATE FUNCTION stable_max() RETURNS int LANGUAGE plpgsql STABLE AS $$BEGIN RETURN max(i) FROM fresh; END$$',
  'CREATE FUNCTION folded_max() RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$BEGIN RETURN max(i) FROM fresh; END$$',
  'CREATE PROCEDURE see_twice() LANGUAGE plpgsql AS $$BEGIN INSERT INTO seen SELECT max(i) FROM fresh; COMMIT;
	INSERT INTO seen SELECT max(i) FROM fresh; END$$',
  'GRANT ALL ON ALL TABLES IN SCHEMA public TO app';

my ($holder, $session) = map { app_of($node) } 1 .. 2;
$session->query('PREPARE named AS SELECT max(i) FROM fresh');
$session->query('PREPARE named_update AS UPDATE one SET i = (SELECT max(i) FROM fresh) RETURNING i');
my $newest = 1;

# Where the newest row that a statement saw can be read, if not in its own result.
my $in_seen = sub { $admin->value('SELECT max(i) FROM seen') };

# Kinds of statements; {P} stands for 0, or for a parameter that is 0.
my @kinds = (
	[ 'SELECT', 'SELECT max(i) FROM fresh WHERE i > {P}' ],
	[ 'SELECT behind another', 'SELECT 1; SELECT max(i) FROM fresh', only => 'simple' ],
	[ 'UPDATE', 'UPDATE one SET i = (SELECT max(i) FROM fresh WHERE i > {P})', from => 'SELECT i FROM one' ],
	[ 'UPDATE RETURNING', 'UPDATE one SET i = (SELECT max(i) FROM fresh WHERE i > {P}) RETURNING i' ],
	[
		'data-modifying CTE',
		'WITH w AS (INSERT INTO seen SELECT max(i) FROM fresh WHERE i > {P} RETURNING i) SELECT i FROM w'
	],
	[ 'FOR UPDATE', 'SELECT i FROM fresh WHERE i > {P} ORDER BY i DESC LIMIT 1 FOR UPDATE' ],
	[ 'INSERT with a rule', 'INSERT INTO ruled VALUES ({P})', from => 'SELECT max(i) FROM seen' ],
	[ 'volatile SQL function', 'SELECT volatile_max() WHERE 1 > {P}' ],
	[ 'inlined set-returning SQL function', 'SELECT * FROM inlined_max() WHERE 1 > {P}' ],
	[ 'stable plpgsql function', 'SELECT stable_max() WHERE 1 > {P}' ],
	[ 'function folded by the planner', 'SELECT folded_max()', as_planned => 1 ],
	[ 'EXECUTE', 'EXECUTE named' ],
	[ 'EXECUTE of an UPDATE', 'EXECUTE named_update' ],
	[
		'EXPLAIN ANALYZE',
		'EXPLAIN ANALYZE INSERT INTO seen SELECT max(i) FROM fresh',
		from => 'SELECT max(i) FROM seen'
	],
	[ 'CREATE TABLE AS', 'CREATE TABLE made AS SELECT max(i) FROM fresh', from => 'SELECT max FROM made', then => 'DROP TABLE made' ],
	[
		'DECLARE WITH HOLD',
		'DECLARE held CURSOR WITH HOLD FOR SELECT max(i) FROM fresh',
		then => 'FETCH held',
		finally => 'CLOSE held'
	],
	[ 'CALL with COMMIT', 'CALL see_twice()', from => 'SELECT max(i) FROM seen HAVING count(*) = 2' ],
	[ 'DO', 'DO $$BEGIN INSERT INTO seen SELECT max(i) FROM fresh; END$$', from => 'SELECT max(i) FROM seen' ],
	[ 'COPY TO', 'COPY (SELECT max(i) FROM fresh) TO STDOUT' ],
	[ 'BEGIN', 'BEGIN', then => 'SELECT max(i) FROM fresh', finally => 'COMMIT' ]);

# How a statement is sent; those of a prepared one need a name. Parameters are given to what has a place for them.
my %ways = (
	simple => sub { my ($sql) = @_; $session->send($sql) },
	extended => sub { my ($sql, $name, @parameters) = @_; $session->extended($sql, @parameters) },
	prepared => sub { my ($sql, $name, @parameters) = @_; $session->execute($name, @parameters) });

# Sends it with $send while there is no slot, and looks at what it holds. Something of its role changed, so that the gate
# reads catalogs to judge it: for that, too, there is a snapshot.
my $limit = 1000;

sub begin_waiting
{
	my ($send) = @_;
	$admin->query('ALTER ROLE app CONNECTION LIMIT ' . ++$limit);
	$holder->query('BEGIN');
	$send->();
	wait_for_waiting($admin, 1);
	my $pid = $session->pid;
	# It is in the queue a moment before it has let go of its snapshot, and sleeps.
	poll_until('it sleeps', sub { $admin->value("SELECT wait_event_type FROM pg_stat_activity WHERE pid = $pid") eq 'Extension' });
	return $admin->value("SELECT backend_xmin FROM pg_stat_activity WHERE pid = $pid");
}

sub commit_a_row
{
	$newest++;
	return $admin->query("INSERT INTO fresh VALUES ($newest)");
}

# A test: cancelled in the wait it leaves a session that goes on as ever.
sub can_be_cancelled
{
	my ($what, $send) = @_;
	begin_waiting($send);
	$admin->query('SELECT pg_cancel_backend(' . $session->pid . ')');
	my $answer = $session->answer;
	$holder->query('COMMIT');
	return is("$answer->{code} $answer->{status}", '57014 I', "$what: cancelled in the wait");
}

# A test: it holds no snapshot while it waits, and sees what was committed meanwhile.
sub sees_fresh_rows
{
	my ($what, $send, %options) = @_;
	my $xmin = begin_waiting($send);
	my $planned = $newest;
	commit_a_row();
	$holder->query('COMMIT');
	my $answer = $session->answer;
	is($xmin, '', "$what: no backend_xmin in the wait");
	my $rows = $options{then} && !$options{from} ? $session->query($options{then}) : $answer->{rows};
	my $seen = $options{from} ? $admin->value($options{from}) : $rows->[-1][0];
	is($seen, $options{as_planned} ? $planned : $newest, "$what: what it sees")
	  || diag("$answer->{code} $answer->{message}");
	$session->query($options{then}) if $options{then} && $options{from};
	$session->query($options{finally}) if $options{finally};
	$admin->query('TRUNCATE seen');
	return;
}

# ---- READ COMMITTED

foreach my $kind (@kinds)
{
	my ($what, $sql, %options) = @$kind;
	foreach my $way ($options{only} // sort keys %ways)
	{
		foreach my $placeholder ($way ne 'simple' && $sql =~ /\{P\}/ ? (0, '$1') : 0)
		{
			my $text = $sql =~ s/\{P\}/$placeholder/r;
			my @parameters = $placeholder ? (0) : ();
			my $name = "$what, $way" . ($placeholder ? ', with a parameter' : '');
			$session->parse($name, $text) if $way eq 'prepared';
			my $send = sub { $ways{$way}->($text, $name, @parameters) };
			can_be_cancelled($name, $send);
			sees_fresh_rows($name, $send, %options);
		}
	}
}
nothing_left($admin, 'after every kind');

# A plan that was made once for all.
$session->query('SET plan_cache_mode = force_generic_plan');
$session->parse('generic', 'SELECT max(i) FROM fresh WHERE i > $1');
sees_fresh_rows('generic plan', sub { $session->execute('generic', 0) }) foreach 1 .. 2;
$session->query('RESET plan_cache_mode');

# ---- isolation levels that have one snapshot for the whole transaction

foreach my $level ('repeatable read', 'serializable')
{
	$session->query("SET default_transaction_isolation = '$level'");
	foreach my $kind (grep { $_->[0] =~ /^(SELECT|UPDATE RETURNING|EXECUTE|EXPLAIN ANALYZE|DECLARE WITH HOLD|COPY TO|DO)$/ } @kinds)
	{
		my ($what, $sql, %options) = @$kind;
		$sql =~ s/\{P\}/0/;
		my $send = sub { $session->send($sql) };
		can_be_cancelled("$what, $level", $send);
		my $xmin = begin_waiting($send);
		my $before = $newest;
		commit_a_row();
		$holder->query('COMMIT');
		my $answer = $session->answer;
		isnt($xmin, '', "$what, $level: keeps its snapshot");
		my $rows = $options{then} ? $session->query($options{then}) : $answer->{rows};
		is($options{from} ? $admin->value($options{from}) : $rows->[-1][0], $before, "$what, $level: and what it saw");
		$session->query($options{finally}) if $options{finally};
		$admin->query('TRUNCATE seen');
	}
	sees_fresh_rows("BEGIN, $level", sub { $session->send('BEGIN') }, then => 'SELECT max(i) FROM fresh', finally => 'COMMIT');
}
$session->query('RESET default_transaction_isolation');
nothing_left($admin, 'after the other isolation levels');

# ---- VACUUM beside one who waits

foreach my $sql ('SELECT max(i) FROM fresh', 'UPDATE one SET i = 1', 'EXECUTE named', 'CALL see_twice()', 'BEGIN')
{
	$admin->query('INSERT INTO dead SELECT generate_series(1, 11)');
	begin_waiting(sub { $session->send($sql) });
	$admin->query('DELETE FROM dead');
	my $answer = $admin->send('VACUUM (VERBOSE, TRUNCATE off) dead')->answer;
	my ($removed, $kept) = join("\n", map { $_->{message} } @{ $answer->{notices} }) =~
	  /tuples: (\d+) removed, \d+ remain, (\d+) are dead but not yet removable/;
	$holder->query('COMMIT');
	$session->answer;
	$session->query('COMMIT') if $sql eq 'BEGIN';
	is("$removed removed, $kept kept", '11 removed, 0 kept', "VACUUM while this waits: $sql");
}
nothing_left($admin, 'in the end');

# Such as "snapshot ... still active", or a leaked reference.
no_warnings($node, 'no warning in the log of the server');

done_testing();
