# Load shedding by query digest: refused at once and everywhere, places given back on every way out, rules that
# survive a restart.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = gated_node('shed', 'weir.max_active' => 0, 'node' => { allows_streaming => 1 });
my $admin = admin_of($node);
my $app = app_of($node);
$admin->query('CREATE TABLE t (a int); GRANT ALL ON t TO app');
$app->query('CREATE TABLE own (a int)');

my $count = 'SELECT count(*) FROM t';
my $count_id = query_id($count);

# Runs until the administrator lets it, and is an execution that holds a place meanwhile.
my $hang = 'SELECT pg_advisory_xact_lock_shared(42)';
my $hang_id = query_id($hang);

# What EXPLAIN says is the identifier of a query.
sub query_id
{
	my ($sql) = @_;
	$admin->value("EXPLAIN (VERBOSE, FORMAT JSON) $sql") =~ /"Query Identifier": (-?\d+)/ or die "no identifier: $sql";
	return $1;
}

# EXPLAIN does not know utility statements; the statistics know the last one of a session.
sub utility_id
{
	my ($session, $sql) = @_;
	$session->query($sql);
	return $admin->value("SELECT query_id FROM pg_stat_activity WHERE pid = " . $session->pid);
}

sub rule
{
	my ($id, $columns) = @_;
	return $admin->value("SELECT concat_ws(' ', $columns) FROM weir.query_rules WHERE queryid = $id");
}

# What survives a restart, of all rules.
sub all_rules
{
	return $admin->value(
		"SELECT string_agg(concat_ws(' ', queryid, action, max_active, reason, created_at, expires_at), '; ' ORDER BY queryid)
		 FROM weir.query_rules");
}

sub limit_to { my ($id, $max) = @_; return $admin->query("SELECT weir.limit_query($id, $max)") }
sub block { my ($id) = @_; return $admin->query("SELECT weir.block_query($id)") }
sub drop_rule { my ($id) = @_; return $admin->value("SELECT weir.drop_query_rule($id)") }

sub wait_for_active
{
	my ($id, $active) = @_;
	return poll_until("$active active", sub { rule($id, 'active') eq $active });
}

# A test: $sql is refused at once, by the rule of $id.
sub refused_at_once
{
	my ($session, $sql, $id, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $answer = $session->send($sql)->answer($PgWeir::at_once_s);
	return is_refused($answer, qr/query $id: /, $name);
}

# A test: $sql runs.
sub runs
{
	my ($session, $sql, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $answer = $session->send($sql)->answer;
	return is($answer->{code}, '', $name) || diag($answer->{message});
}

# A test: an execution that hangs holds a place, and after $end has ended it in some way nobody does.
sub place_is_left
{
	my ($name, $end) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $session = app_of($node);
	$session->send($hang);
	wait_for_active($hang_id, 1);
	$end->($session);
	ok(eval { wait_for_active($hang_id, 0) }, "place given back: $name");
	$session->close;
	return;
}

# ---- blocking

is($app->value($count), 0, 'no rule: it runs');
$app->parse('prepared', $count);
$admin->query("SELECT weir.block_query($count_id, 'incident 17')");
my $answer = $app->send($count)->answer($PgWeir::at_once_s);
is_refused($answer, qr/^Rule in weir\.query_rules for query $count_id: block\. Reason: incident 17\.$/, 'an open session');
is($answer->{message}, 'this query is blocked', 'message');
is_refused($app->execute('prepared')->answer, qr/incident 17/, 'a statement prepared before');
refused_at_once(app_of($node), $count, $count_id, 'a new session');
refused_at_once($app, "EXPLAIN ANALYZE $count", $count_id, 'EXPLAIN ANALYZE');
runs($app, "EXPLAIN $count", 'EXPLAIN runs: it executes nothing');
runs($app, 'SELECT 1', 'another query runs');
runs($admin, $count, 'a superuser runs it');
is(rule($count_id, 'action, max_active, reason, active, hits, refused'), 'block incident 17 0 4 4', 'the view');
is(rule($count_id, "last_refused_at > created_at AND expires_at IS NULL"), 't', 'its times');

$app->query('BEGIN');
refused_at_once($app, $count, $count_id, 'in a transaction');
is($app->send('SELECT 1')->answer->{code}, '25P02', 'the transaction is aborted');
runs($app, 'ROLLBACK', 'ROLLBACK');

$admin->query(
	"CREATE FUNCTION counted() RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS
	 'DECLARE n bigint; BEGIN EXECUTE ''$count'' INTO n; RETURN n; END'");
refused_at_once($app, 'SELECT counted()', $count_id, 'within a function, a superuser\'s SECURITY DEFINER too');
# With every slot taken: a refusal is not worth a wait.
reconfigure($admin, 'weir.max_active' => 1);
my $holder = app_of($node);
$holder->query('BEGIN');
refused_at_once(app_of($node), $count, $count_id, 'without a slot, too');
$holder->query('COMMIT');
$holder->close;
reconfigure($admin, 'weir.max_active' => 0);

is(drop_rule($count_id), 't', 'drop_query_rule');
is(drop_rule($count_id), 'f', 'drop_query_rule: there is none');
runs($app, $count, 'it runs again at once');

# ---- limiting

$admin->query('SELECT pg_advisory_lock(42)');
limit_to($hang_id, 2);
my @hanging = map { app_of($node) } 1 .. 2;
$_->send($hang) foreach @hanging;
wait_for_active($hang_id, 2);
$answer = $app->send($hang)->answer($PgWeir::at_once_s);
is_refused($answer, qr/: at most 2 at once\. Reason: none given\.$/, 'one too many');
is($answer->{message}, 'this query runs too many times at once', 'message');
limit_to($hang_id, 3);
push @hanging, app_of($node);
$hanging[2]->send($hang);
wait_for_active($hang_id, 3);
pass('a raised limit counts those who ran before');
is(rule($hang_id, 'max_active, hits, refused'), '3 4 1', 'replacing keeps the counters');
limit_to($hang_id, 1);
refused_at_once($app, $hang, $hang_id, 'a lowered limit');
ok(!(grep { $_->answered } @hanging), 'who runs goes on');
$admin->query('SELECT pg_advisory_unlock(42)');
is($_->answer->{code}, '', 'ends well') foreach @hanging;
is(rule($hang_id, 'active'), 0, 'all places are given back');

# A place under a rule that was dropped is not taken from the next.
$admin->query('SELECT pg_advisory_lock(42)');
$hanging[0]->send($hang);
wait_for_active($hang_id, 1);
drop_rule($hang_id);
limit_to($hang_id, 1);
is(rule($hang_id, 'active'), 0, 'a new rule does not know who ran before');
$hanging[1]->send($hang);
wait_for_active($hang_id, 1);
$admin->query('SELECT pg_cancel_backend(' . $hanging[0]->pid . ')');
is($hanging[0]->answer->{code}, '57014', 'the old one ends');
is(rule($hang_id, 'active'), 1, 'the new one keeps its place');
$admin->query('SELECT pg_cancel_backend(' . $hanging[1]->pid . ')');
$hanging[1]->answer;

place_is_left('cancelled', sub { $admin->query('SELECT pg_cancel_backend(' . $_[0]->pid . ')'); $_[0]->answer });
place_is_left('terminated', sub { $admin->query('SELECT pg_terminate_backend(' . $_[0]->pid . ')') });
place_is_left(
	'statement_timeout',
	sub {
		my $session = app_of($node, options => '-c statement_timeout=100ms');
		$admin->query('SELECT pg_cancel_backend(' . $_[0]->pid . ')');
		$_[0]->answer;
		is($session->send($hang)->answer->{code}, '57014', 'statement_timeout');
	});
$admin->query('SELECT pg_advisory_unlock(42)');

# ---- places within a transaction

my $divide = 'SELECT 1 / (count(*) - count(*)) FROM t';
my $divide_id = query_id($divide);
limit_to($divide_id, 1);
$app->query('BEGIN');
foreach my $time (1 .. 2)
{
	runs($app, "DO 'BEGIN EXECUTE ''$divide''; EXCEPTION WHEN division_by_zero THEN END'", "an exception block, time $time");
	is(rule($divide_id, 'active'), 0, 'it gives the place back, within the transaction');
}
$app->query('SAVEPOINT s');
is($app->send($divide)->answer->{code}, '22012', 'an error after a savepoint');
$app->query('ROLLBACK TO s');
is(rule($divide_id, 'active, hits, refused'), '0 3 0', 'ROLLBACK TO gives the place back');
$app->query('COMMIT');

# Not DECLARE: before version 18 that gives its query no identifier.
$admin->query(
	"CREATE FUNCTION open_cursor() RETURNS refcursor LANGUAGE plpgsql AS
	 'DECLARE c refcursor := ''c''; BEGIN OPEN c FOR EXECUTE ''$count''; RETURN c; END'");
limit_to($count_id, 1);
$app->query('BEGIN');
$app->query('SAVEPOINT s');
$app->query('SELECT open_cursor()');
$app->query('RELEASE s');
is(rule($count_id, 'active'), 1, 'a cursor holds its place while it is open');
my $other = app_of($node);
refused_at_once($other, $count, $count_id, 'beside the cursor');
runs($app, 'FETCH c', 'FETCH');
$app->query('SAVEPOINT s');
$app->send('SELECT 1/0')->answer;
$app->query('ROLLBACK TO s');
is(rule($count_id, 'active'), 1, 'a later subtransaction\'s abort leaves it alone');
$app->query('CLOSE c');
is(rule($count_id, 'active'), 0, 'until it is closed');
$app->query('SELECT open_cursor()');
is(rule($count_id, 'active'), 1, 'another');
$app->query('COMMIT');
is(rule($count_id, 'active'), 0, 'or until the transaction ends');
drop_rule($count_id);

# As deep as it gets: 21 executions of one query, each within the other; 16 of them counted.
$admin->query(
	"CREATE FUNCTION active_now(id bigint) RETURNS int LANGUAGE sql SECURITY DEFINER AS
	 'SELECT active FROM weir.query_rules WHERE queryid = id'");
$admin->query(
	q{CREATE FUNCTION deep(n int, id bigint) RETURNS int LANGUAGE plpgsql AS $$
		DECLARE active int;
		BEGIN
			IF n = 0 THEN RETURN active_now(id); END IF;
			EXECUTE format('SELECT deep(%s, %L::bigint)', n - 1, id) INTO active;
			RETURN active;
		END $$});
my $deep_id = query_id("SELECT deep(1, '1'::bigint)");
limit_to($deep_id, 100);
is($app->value("SELECT deep(20, '$deep_id'::bigint)"), 16, 'a session holds 16 places at most');
is(rule($deep_id, 'active, hits'), '0 21', 'each execution is judged, and all places are given back');
limit_to($deep_id, 5);
refused_at_once($app, "SELECT deep(20, '$deep_id'::bigint)", $deep_id, 'a query within itself counts each time');
is(rule($deep_id, 'active'), 0, 'and gives everything back');

# ---- utility statements

my $truncate_id = utility_id($app, 'TRUNCATE own');
block($truncate_id);
refused_at_once($app, 'TRUNCATE own', $truncate_id, 'a utility statement');
foreach my $sql ('BEGIN', 'SAVEPOINT s', 'COMMIT', 'SET work_mem = 4096', 'SHOW work_mem', 'DISCARD PLANS', 'DEALLOCATE ALL')
{
	$app->query('BEGIN') if $sql =~ /SAVEPOINT|COMMIT/;
	my $id = utility_id($app, $sql);
	$app->query('ROLLBACK');
	block($id);
	$app->query('BEGIN') if $sql =~ /SAVEPOINT|COMMIT/;
	runs($app, $sql, "$sql cannot be blocked");
	$app->query('ROLLBACK');
	drop_rule($id);
}

$admin->query(
	q{CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN COMMIT; ROLLBACK; PERFORM pg_advisory_xact_lock_shared(42); END $$});
my $call_id = utility_id($app, 'CALL commits()');
limit_to($call_id, 1);
$admin->query('SELECT pg_advisory_lock(42)');
$app->send('CALL commits()');
poll_until('the procedure waits', sub { $admin->value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted") == 1 });
is(rule($call_id, 'active'), 1, 'a procedure keeps its place over its COMMIT and ROLLBACK');
refused_at_once($other, 'CALL commits()', $call_id, 'a second CALL');
$admin->query('SELECT pg_advisory_unlock(42)');
is($app->answer->{code}, '', 'the first ends');
is(rule($call_id, 'active'), 0, 'and gives its place back');
$admin->query('SELECT pg_advisory_lock(42)');
$other->send('CALL commits()');
wait_for_active($call_id, 1);
$admin->query('SELECT pg_terminate_backend(' . $other->pid . ')');
ok(eval { wait_for_active($call_id, 0) }, 'terminated, too');
$admin->query('SELECT pg_advisory_unlock(42)');
$admin->query(
	q{CREATE PROCEDURE rolls_back() LANGUAGE plpgsql AS $$ DECLARE c refcursor; BEGIN
		FOR n IN 1..4 LOOP c := NULL; OPEN c FOR SELECT count(*) FROM t; MOVE c; ROLLBACK; END LOOP; END $$});
limit_to($count_id, 2);
runs($app, 'CALL rolls_back()', 'cursors that a ROLLBACK in a procedure ends give their places back');
is(rule($count_id, 'active, refused'), '0 0', 'all of them');
drop_rule($count_id);
$admin->query('CREATE PROCEDURE idles() LANGUAGE sql AS $$ SELECT 1 $$');
my $idles_id = utility_id($app, 'CALL idles()');
limit_to($idles_id, 1);
$app->query('BEGIN');
runs($app, 'CALL idles()', "CALL in a transaction, time $_") foreach 1 .. 2;
$app->query('COMMIT');

# ---- modes

block($count_id);
reconfigure($admin, 'weir.mode' => 'observe');
runs($app, $count, 'observe: it runs');
is(rule($count_id, 'hits, refused'), '1 1', 'and is counted');
reconfigure($admin, 'weir.mode' => 'off');
runs($app, $count, 'off: it runs');
is(rule($count_id, 'hits, refused'), '1 1', 'and is not counted');
reconfigure($admin, 'weir.mode' => 'enforce', 'weir.superuser_bypass' => 'off');
refused_at_once($admin, $count, $count_id, 'without superuser_bypass, a superuser');
reconfigure($admin, 'weir.superuser_bypass' => 'on');

# ---- expiry

my $began = Time::HiRes::time();
$admin->query("SELECT weir.block_query($count_id, ttl => '700ms')");
poll_until('the rule expires', sub { !$app->send($count)->answer->{code} });
cmp_ok(Time::HiRes::time() - $began, '>=', 0.7, 'in force until it expires');
is(rule($count_id, 'action'), '', 'the view does not show it any more');

# ---- who may

is($app->send("SELECT weir.block_query($count_id)")->answer->{code}, '42501', 'not anybody may block');
is($app->send('SELECT * FROM weir.query_rules')->answer->{code}, '42501', 'nor look');
$admin->query('GRANT pg_monitor TO app');
runs($app, 'SELECT * FROM weir.query_rules', 'pg_monitor may look');
$admin->query('GRANT EXECUTE ON FUNCTION weir.block_query TO app');
runs($app, "SELECT weir.block_query($count_id, 'granted')", 'who was granted it may block');

# ---- the file

my $file = $node->data_dir . '/pg_weir_query_rules';
mkdir "$file.tmp" or die;
$answer = $admin->send("SELECT weir.limit_query($count_id, 5)")->answer;
is($answer->{code}, '42809', 'a file that cannot be written is an error');
like($answer->{message}, qr/could not write file "pg_weir_query_rules.tmp": /, 'with its name');
isnt($admin->send("SELECT weir.drop_query_rule($count_id)")->answer->{code}, '', 'on dropping too');
is(rule($count_id, 'action, reason'), 'block granted', 'and the rule is as it was');
rmdir "$file.tmp" or die;

# ---- a restart after a crash; a restart

$admin->query("SELECT weir.limit_query($hang_id, 1, 'hangs', '1 day')");
$admin->query('SELECT pg_advisory_lock(42)');
$hanging[2]->send($hang);
wait_for_active($hang_id, 1);
my $before = all_rules();
$node->append_conf('postgresql.conf', 'restart_after_crash = on');
$admin->query('SELECT pg_reload_conf()');
kill 'KILL', $hanging[2]->pid;
poll_until('the crash is noticed', sub { !eval { $admin->value('SELECT 1') } });
poll_until('the server is back', sub { eval { $admin = admin_of($node) } });
is(rule($hang_id, 'active'), 0, 'kill -9: no place is held after the restart');
is(all_rules(), $before, 'the rules are the same');
$admin->query('SELECT weir.block_query(4711, ttl => \'1ms\')');
$node->restart;
$admin = admin_of($node);
$app = app_of($node);
is(all_rules(), $before, 'after a restart too, without an expired one');
refused_at_once($app, $count, $count_id, 'and in force');

# ---- a standby has its own, and begins with the primary's

$node->backup('base');
my $standby = PostgreSQL::Test::Cluster->new('standby');
$standby->init_from_backup($node, 'base', has_streaming => 1);
$standby->start;
$node->wait_for_catchup($standby);
my $reader = app_of($standby);
refused_at_once($reader, $count, $count_id, 'on a standby, with a copied rule');
is(admin_of($standby)->value("SELECT weir.drop_query_rule($count_id)"), 't', 'a rule can be dropped there');
runs($reader, $count, 'and is');
refused_at_once($app, $count, $count_id, 'while the primary keeps it');
$standby->stop;

# ---- damaged files

foreach my $damage (
	[ 'empty', sub { '' }, 'it is too short' ],
	[ 'cut short', sub { substr($_[0], 0, -1) }, 'its length does not fit its number of rules' ],
	[ 'a flipped bit', sub { my $b = $_[0]; substr($b, 40, 1) ^= "\1"; $b }, 'its checksum does not match' ],
	[ 'of a later version', sub { my $b = $_[0]; substr($b, 8, 1) = "\2"; $b }, 'it is of a version that this pg_weir does not know' ],
	[ 'something else', sub { 'x' x 100_000 }, 'it does not begin as a file of query rules' ])
{
	my ($name, $spoil, $trouble) = @$damage;
	block($count_id);
	$node->stop;
	my $bad = $spoil->(slurp_file($file));
	open my $out, '>:raw', $file or die;
	print $out $bad;
	close $out;
	my $log_at = -s $node->logfile;
	$node->start;
	like(
		slurp_file($node->logfile, $log_at),
		qr/WARNING:  pg_weir: no query rules are in force: could not use file "pg_weir_query_rules": \Q$trouble\E/,
		"$name: the log says so");
	ok(!-e $file && slurp_file("$file.damaged") eq $bad, "$name: the file is set aside");
	$admin = admin_of($node);
	is(all_rules(), '', "$name: the server runs without rules");
}
block($count_id);
refused_at_once(app_of($node), $count, $count_id, 'rules can be made again');

nothing_left($admin, 'in the end');
done_testing();
