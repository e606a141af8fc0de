# Coalescing: tables and statements that are more than one plain row. Each is sent through a worker, and the same without it, to
# a table that is equal: answers and contents are the same, and the worker had it.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = gated_node(
	'shapes',
	'max_connections' => 60,
	'weir.max_active' => 0,
	'deadlock_timeout' => '10s');
my $admin = admin_of($node);
my @sides = qw(opted plain);
foreach my $side (@sides)
{
	$admin->query($_)
	  foreach "CREATE SCHEMA $side", "SET search_path = $side",
	  q{CREATE TABLE generated (k int PRIMARY KEY, a int, name text, b int NOT NULL GENERATED ALWAYS AS (a * 2) STORED CHECK (b < 1000),
		code text UNIQUE GENERATED ALWAYS AS (lower(name)) STORED)},
	  'CREATE INDEX ON generated (b)',
	  q{CREATE TABLE conflicts (k int PRIMARY KEY, u int UNIQUE, what text DEFAULT 'some')},
	  q{CREATE TABLE large (k int PRIMARY KEY, n int DEFAULT 0 CHECK (n < 100), body text, external text, tags text[], note text DEFAULT 'note')},
	  'ALTER TABLE large ALTER external SET STORAGE EXTERNAL',
	  q{CREATE TABLE parts (region int, gone int, k int, n int CHECK (n < 100), name text DEFAULT 'noname', twice int GENERATED ALWAYS AS (n * 2) STORED,
		PRIMARY KEY (region, k)) PARTITION BY LIST (region)},
	  'CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1)',
	  # Its columns are in another order, and it has a constraint of its own.
	  q{CREATE TABLE parts_2 (twice int GENERATED ALWAYS AS (n * 2) STORED, name text, n int CHECK (n < 100), other int, k int NOT NULL, region int NOT NULL,
		gone int, CONSTRAINT parts_n_check CHECK (n < 100), CONSTRAINT own CHECK (name <> 'forbidden'))},
	  'ALTER TABLE parts_2 DROP other', 'ALTER TABLE parts_2 ALTER name SET DEFAULT $$another$$', 'ALTER TABLE parts_2 DROP CONSTRAINT parts_2_n_check',
	  'ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES IN (2)', 'ALTER TABLE parts DROP gone',
	  'CREATE TABLE parts_3 PARTITION OF parts FOR VALUES IN (3, 4) PARTITION BY HASH (k)',
	  (map { "CREATE TABLE parts_3_$_ PARTITION OF parts_3 FOR VALUES WITH (modulus 2, remainder $_)" } 0, 1),
	  'CREATE TABLE parts_5 PARTITION OF parts FOR VALUES IN (5)', 'ALTER TABLE parts_5 SET UNLOGGED',
	  'CREATE INDEX ON parts_2 (n)',
	  'CREATE TABLE lists (k int PRIMARY KEY, tags int[] CHECK (cardinality(tags) <= 3), n int)', 'INSERT INTO lists VALUES (1, $${1,2}$$, 0), (2, $${}$$, 0)',
	  q{CREATE TYPE pair AS (a int, b int); CREATE TYPE mood AS ENUM ('well', 'ill'); CREATE DOMAIN small AS int},
	  q{CREATE TABLE typed (k int PRIMARY KEY, name text, p pair, m mood, s small)}, q{INSERT INTO typed VALUES (1, 'one', (1, 2), 'well', 3)},
	  'CREATE TABLE rows (k int PRIMARY KEY, u int UNIQUE, n int CHECK (n > 0), parent int REFERENCES conflicts (k))';
}
$admin->query($_) foreach
  'RESET search_path', 'CREATE TABLE held (id int PRIMARY KEY, v int)', 'INSERT INTO held VALUES (1, 0)', q{SELECT weir.coalesce_table('held')},
  q{SELECT weir.coalesce_table(oid) FROM pg_class WHERE relnamespace = 'opted'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition},
  map { ("GRANT USAGE ON SCHEMA $_ TO app", "GRANT ALL ON ALL TABLES IN SCHEMA $_ TO app") } @sides, 'public';

my ($app, $plain) = map { my $session = app_of($node); $session->query("SET search_path = $_"); $session } @sides;

# A worker is there, and so many write at once that it is worth its while: they wait for a row that $holder has.
my $holder = admin_of($node);
my @company = map { app_of($node) } 1 .. 14;
$holder->query('BEGIN');
$holder->query('UPDATE held SET v = 0 WHERE id = 1');
poll_until(
	'a worker',
	sub {
		$app->query('UPDATE public.held SET v = v WHERE id = 99');
		$admin->value("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer'") == 1;
	});
$_->send('UPDATE held SET v = v + 1 WHERE id = 1') foreach @company;
poll_until('company', sub { $admin->value('SELECT count(*) FROM pg_locks WHERE NOT granted') >= @company });

sub requests { return $admin->value(q{SELECT coalesce(sum(requests), 0) FROM weir.stat_coalesce WHERE relation::text LIKE 'opted.%'}) }

# A test: the same answer on both sides, and through the worker, or not, as said.
sub same
{
	my ($sql, $through, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$name //= substr $sql, 0, 150;
	my $before = requests();
	my $answer = $app->send($sql)->answer;
	my $taken = requests() - $before;
	my $expected = $plain->send($sql)->answer;
	my @fields = qw(tag code message detail hint table column constraint rows);
	is_deeply({ map { $_ => $answer->{$_} } @fields }, { map { $_ => $expected->{$_} } @fields }, "same answer: $name");
	return is($taken, $through, ($through ? 'through a worker' : 'not through a worker') . ": $name")
	  || diag(map { join(' ', map { $_ // '' } @$_) . "\n" }
		  @{ $admin->query('SELECT relation, declined_by_reason, not_executed_by_reason FROM weir.stat_coalesce') });
}

# A test: the tables are equal.
sub same_rows
{
	my ($table) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my ($opted, $expected) = map { $admin->query("SELECT * FROM $_.$table ORDER BY 1, 2") } @sides;
	return is_deeply($opted, $expected, "the same is in $table, @{[scalar @$expected]} rows");
}

# ---- generated columns

same(q{INSERT INTO generated (k, a, name) SELECT 1, 1, 'One'}, 1);
same(q{INSERT INTO generated (k, a, name) VALUES (2, 2, 'Two'), (3, 3, 'Three')}, 1);
same('UPDATE generated SET a = a + 5 WHERE k = 1', 1);
same('UPDATE generated SET a = a + 5, b = DEFAULT WHERE k = 1 RETURNING *', 1);
same('UPDATE generated SET a = a + 5 WHERE k = 1 AND b = 22 RETURNING b, k', 1);
same('UPDATE generated SET a = 1000 WHERE k = 1', 0, 'a generated column breaks a CHECK');
same('UPDATE generated SET a = NULL WHERE k = 1', 0, 'a generated column is NOT NULL');
same('UPDATE generated SET a = 2000000000 WHERE k = 1', 0, 'an expression of a generated column fails');
same(q{UPDATE generated SET name = 'TWO' WHERE k = 1}, 0, 'what a unique column is generated from');
same('DELETE FROM generated WHERE k = 2 RETURNING *', 1);
same_rows('generated');
is($admin->value('SET enable_seqscan = off; SELECT k FROM opted.generated WHERE b = 32'), 1, 'the index knows the generated value');
$admin->query('RESET enable_seqscan');

# ---- ON CONFLICT DO NOTHING with RETURNING

same('INSERT INTO conflicts (k, u) VALUES (1, 1) ON CONFLICT DO NOTHING RETURNING k, what', 1);
same('INSERT INTO conflicts (k, u) VALUES (1, 2) ON CONFLICT DO NOTHING RETURNING k, what', 1, 'nothing is returned');
same('INSERT INTO conflicts (k, u) VALUES (2, 2), (2, 3), (3, 1), (4, NULL), (5, 5) ON CONFLICT DO NOTHING RETURNING *', 1, 'some are');
same('INSERT INTO conflicts (k, u) VALUES (6, 6), (6, 7), (7, 7) ON CONFLICT (k) DO NOTHING RETURNING u, k', 1, 'on one index');
same('INSERT INTO conflicts (k, u) VALUES (8, 8), (9, 7) ON CONFLICT (k) DO NOTHING RETURNING u, k', 0, 'on another one it is an error');
same_rows('conflicts');

# ---- partitioned tables

same("INSERT INTO parts (region, k, n) VALUES ($_, 1, 10 * $_)", 1) foreach 1 .. 4;
same('INSERT INTO parts (region, k, n) VALUES (5, 1, 1)', 0, 'a partition that is unlogged');
same('INSERT INTO parts (region, k, n) VALUES (6, 1, 1)', 0, 'no partition');
same('INSERT INTO parts (region, k, n) VALUES ' . join(', ', map { my $r = $_; map { "($r, $_, $_)" } 2 .. 5 } 1 .. 4), 1, 'rows for several partitions');
same(q{INSERT INTO parts VALUES (2, 6, 1, 'six'), (1, 6, 1, DEFAULT), (3, 6, 1, NULL) RETURNING *}, 1, 'and returned');
same(q{INSERT INTO parts VALUES (2, 7, 1, 'seven'), (1, 7, 1, ''), (3, 6, 1, '')}, 0, 'one of them is there already');
same(q{INSERT INTO parts VALUES (2, 7, 1, 'seven'), (1, 7, 1, ''), (3, 7, 100, '')}, 0, 'one breaks a CHECK');
same(q{INSERT INTO parts VALUES (2, 7, 1, 'forbidden')}, 0, 'one breaks a CHECK of its partition');
same(q{INSERT INTO parts VALUES (2, 1, 1), (2, 8, 1), (1, 1, 1), (1, 8, 1), (4, 8, 1), (4, 8, 2) ON CONFLICT DO NOTHING RETURNING name, n, region}, 1, 'DO NOTHING');
same(q{INSERT INTO parts VALUES (2, 1, 1), (2, 9, 1), (1, 1, 1), (1, 9, 1), (4, 9, 1), (4, 9, 2) ON CONFLICT (k, region) DO NOTHING}, 1, 'DO NOTHING on an index');
same("INSERT INTO parts VALUES (2, 10, 1, repeat('long ', 5000))", 1, 'a large row that is small when it is compressed');
same('UPDATE parts SET n = 5 WHERE region = 1 AND k = 1', 0, 'UPDATE');
same('DELETE FROM parts WHERE region = 1 AND k = 1 RETURNING *', 0, 'DELETE');
same('INSERT INTO parts_1 VALUES (1, 1, 1)', 0, 'a partition by its own name');
same_rows('parts');
is($admin->value('SELECT count(*) FROM opted.parts_2 WHERE n < 50'), $admin->value('SET enable_seqscan = off; SELECT count(*) FROM opted.parts_2 WHERE n < 50'), 'an index of a partition');
$admin->query('RESET enable_seqscan');
$admin->query("ALTER TABLE $_.parts_1 ADD CONSTRAINT x CHECK (n < 50)") foreach @sides;
same('INSERT INTO parts (region, k, n) VALUES (1, 20, 60)', 0, 'a constraint that has come to a partition');
$admin->query("ALTER TABLE $_.parts DETACH PARTITION $_.parts_1") foreach @sides;
same('INSERT INTO parts (region, k, n) VALUES (1, 20, 1)', 0, 'a partition that has gone');
same('INSERT INTO parts (region, k, n) VALUES (2, 20, 1)', 1, 'the others are there');
$admin->query($_) foreach 'SET search_path = opted', 'CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$',
  'CREATE TRIGGER t BEFORE INSERT ON parts_2 FOR EACH ROW EXECUTE FUNCTION f()', 'RESET search_path';
same('INSERT INTO parts (region, k, n) VALUES (2, 21, 1)', 0, 'a trigger on a partition');
same('INSERT INTO parts (region, k, n) VALUES (3, 21, 1)', 1, 'none on another');

# ---- several rows: the first that is wrong is reported, whatever is wrong with later ones

same('INSERT INTO rows (k, u, n, parent) VALUES (1, 1, 1, 1), (2, 2, 2, NULL), (3, 3, 3, 4)', 1);
same('INSERT INTO rows (k, u, n) VALUES (1, 4, 1), (5, 5, 0)', 0, 'a key that is there, then a CHECK');
same('INSERT INTO rows (k, u, n) VALUES (5, 5, 0), (1, 4, 1)', 0, 'a CHECK, then a key that is there');
same('INSERT INTO rows (k, u, n) VALUES (4, 4, 1), (4, 5, 1), (6, 6, 1 / (length(now()::text) - length(now()::text)))', 0, 'a key twice, then an expression');
same('INSERT INTO rows (k, u, n) VALUES (4, 4, length(to_char(now(), $$YYYY$$))), (5, 5, -length(to_char(now(), $$YYYY$$))), (4, 5, 1)', 0, 'a CHECK, then a key twice');
same('INSERT INTO rows (k, u, n, parent) VALUES (4, 4, 1, 99), (5, 5, 0, NULL)', 0, 'a missing parent, then a CHECK: the parent is looked for at the end');
same('INSERT INTO rows (k, u, n) VALUES (NULL, 4, 1), (5, 5, 0)', 0, 'NOT NULL, then a CHECK');
same('INSERT INTO rows (k, u, n) VALUES (4, 1, 1), (5, 5, 0), (6, 6, 1) ON CONFLICT (u) DO NOTHING', 0, 'DO NOTHING, then a CHECK');
same('INSERT INTO rows (k, u, n) VALUES (4, 4, 4), (5, 5, 5)', 1, 'the session goes on');
same_rows('rows');

# ---- requests of more than 8 kB

sub memory { my ($column) = @_; return $admin->value("SELECT $column FROM weir.coalesce_memory") }
sub noise { my ($size) = @_; return join '', map { chr(33 + int(rand 89)) =~ s/['\\]/x/r } 1 .. $size }

is(memory('bytes'), 0, 'no memory is taken before it is needed');
poll_until(
	'memory for large requests',
	sub {
		$app->query(q{INSERT INTO large (k, body) VALUES (0, repeat('x', 2000000)) ON CONFLICT DO NOTHING});
		memory('bytes') > 0;
	});
$plain->query(q{INSERT INTO large (k, body) VALUES (0, repeat('x', 2000000))});
srand 1;
my ($medium, $long) = (noise(20_000), noise(400_000));
same(q{INSERT INTO large (k, body) VALUES (1, repeat('compressed ', 50000))}, 1);
same("INSERT INTO large (k, body) VALUES (2, '$long')", 1, 'a value of 400 kB');
same("INSERT INTO large (k, external, tags) VALUES (3, '$medium', ARRAY['$medium', 'b']) RETURNING *", 1, 'several values, returned');
same("INSERT INTO large (k, body) VALUES (4, '$medium'), (5, '$medium'), (6, 'small') RETURNING k, length(body) > 1", 0, 'RETURNING of an expression');
same("INSERT INTO large (k, body) VALUES (7, '$medium'), (8, '$medium'), (7, 'small') ON CONFLICT DO NOTHING RETURNING k, body", 1, 'rows of which one is there');
same("INSERT INTO large (k, body) VALUES (9, '$medium'), (7, '$medium')", 0, 'unique violation');
same("INSERT INTO large (k, body, n) VALUES (10, '$medium', 100)", 0, 'CHECK');
same("INSERT INTO large (k, n) VALUES " . join(', ', map { "($_, $_ % 90)" } 1000 .. 1255), 1, '256 rows');
same("INSERT INTO large (k, n) VALUES " . join(', ', map { "($_, $_ % 90)" } 2000 .. 2256), 0, 'one more');
same("INSERT INTO large (k, external) VALUES (11, repeat('x', 5000000))", 0, 'larger than a request may be');
same("UPDATE large SET body = '$long' WHERE k = 1", 1, 'UPDATE to 400 kB');
same("UPDATE large SET body = body || '$medium', n = n + 1 WHERE k = 2 RETURNING n", 1, 'UPDATE that appends to a value');
same('UPDATE large SET n = n + 1 WHERE k = 2 RETURNING n, note', 1, 'UPDATE beside a large value');
same('UPDATE large SET n = n + 1 WHERE k = 3 RETURNING *', 1, 'UPDATE that returns large values');
same("UPDATE large SET n = n + 1, external = '$medium' WHERE k = 3 RETURNING *", 1, 'UPDATE that sets and returns large values');
same("UPDATE large SET n = 100, body = '$medium' WHERE k = 3", 0, 'CHECK');
same("DELETE FROM large WHERE k = 7 RETURNING *", 1, 'DELETE that returns large values');
same_rows('large');
my ($stored, $expected) = map { $admin->query("SELECT k, pg_column_size(body), pg_column_size(external), pg_column_size(tags), pg_column_compression(body) FROM $_.large ORDER BY 1") } @sides;
is_deeply($stored, $expected, 'values are stored as they would have been');
is($admin->value('SELECT count(*) FROM opted.large WHERE body IS NOT NULL AND pg_column_compression(body) IS NOT NULL') > 0, 1, 'some are compressed');
is(memory('in_use'), 0, 'nothing is left in the memory');
cmp_ok(memory('allocated'), '>=', 12, 'it was used');

# ---- a waiting session has no snapshot

$admin->query('SET weir.coalesce = off');
my $worker = $admin->value(q{SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir coalescer'});
# One that stood still is not asked for a while.
sub await_asked
{
	return poll_until('the worker is asked', sub { my $before = requests(); $app->query('UPDATE large SET n = n WHERE k = 0'); requests() > $before });
}
sub await_queued
{
	my ($name, @sessions) = @_;
	my $pids = join ',', map { $_->{pid} } @sessions;
	return poll_until("it is queued: $name",
		sub { $admin->value("SELECT count(*) FROM pg_stat_activity WHERE pid IN ($pids) AND wait_event_type = 'Extension'") == @sessions });
}
sub while_it_waits
{
	my ($name, $sql, $expected, $what) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	await_asked();
	kill 'STOP', $worker;
	$app->send($sql);
	await_queued($name, $app);
	is($admin->value("SELECT backend_xmin IS NULL FROM pg_stat_activity WHERE pid = $app->{pid}"), $expected, $name);
	$what->() if $what;
	kill 'CONT', $worker unless $what;
	my $answer = $app->answer;
	kill 'CONT', $worker;
	return $answer;
}
is(while_it_waits('INSERT', 'INSERT INTO conflicts (k) VALUES (100)', 't')->{tag}, 'INSERT 0 1', 'it is done');
is(while_it_waits('RETURNING', 'INSERT INTO conflicts (k) VALUES (101) RETURNING k', 't')->{rows}[0][0], 101, 'it is done');
is(while_it_waits('UPDATE', 'UPDATE large SET n = n + 1 WHERE k = 6 RETURNING n', 't')->{rows}[0][0], 1, 'it is done');
# The worker does not come: the session does it itself, and sees what was committed meanwhile.
is(while_it_waits('not executed', 'UPDATE large SET n = n + 1 WHERE k = 6 RETURNING n', 't',
		sub { $admin->query('UPDATE opted.large SET n = n + 10 WHERE k = 6') })->{rows}[0][0], 12, 'its snapshot is a new one');
is(while_it_waits('not executed, INSERT', 'INSERT INTO conflicts (k, u) VALUES (102, 102)', 't',
		sub { $admin->query('INSERT INTO opted.conflicts (k, u) VALUES (103, 102)') })->{code}, '23505', 'its snapshot is a new one');
$app->query("SET enable_indexscan = off; SET enable_seqscan = off");
is(while_it_waits('a bitmap scan keeps its snapshot', 'UPDATE large SET n = n + 1 WHERE k = 6 RETURNING n', 'f', sub { })->{rows}[0][0], 13, 'and needs it');
$app->query('RESET enable_indexscan; RESET enable_seqscan');
$admin->query(q{CREATE FUNCTION opted.stored() RETURNS text STABLE LANGUAGE plpgsql AS $$ BEGIN RETURN external FROM opted.large WHERE k = 3; END $$});
is(while_it_waits('a value in a table needs the snapshot', 'INSERT INTO large (k, body) VALUES (200, opted.stored())', 'f', sub { })->{tag}, 'INSERT 0 1', 'and is stored');
is($admin->value('SELECT body = external FROM (SELECT body FROM opted.large WHERE k = 200) a, (SELECT external FROM opted.large WHERE k = 3) b'), 't', 'as it is');

# ---- what is folded into an array is not changed by who comes next

my @writers = map { my $session = app_of($node); $session->query('SET search_path = opted'); $session } 1 .. 4;
await_asked();
my $folded = $admin->value(q{SELECT folded FROM weir.stat_coalesce WHERE relation = 'opted.lists'::regclass}) || 0;
kill 'STOP', $worker;
my @appends = ([ 1, 3 ], [ 1, 4 ], [ 2, 7 ], [ 2, 8 ]);
$writers[$_]->send("UPDATE lists SET tags = tags || $appends[$_][1], n = cardinality(tags) WHERE k = $appends[$_][0]") foreach 0 .. 3;
await_queued('all four', @writers);
kill 'CONT', $worker;
my @codes = map { $_->answer->{code} } @writers;
is(join(' ', sort @codes[0, 1]), ' 23514', 'of two that append the fourth breaks the CHECK');
is(join(' ', @codes[2, 3]), ' ', 'two others may');
is($admin->value('SELECT cardinality(tags) FROM opted.lists WHERE k = 1'), 3, 'what broke it is not stored');
is($admin->value('SELECT n FROM opted.lists WHERE k = 1'), 2, 'and what is computed beside it is of the row before');
is($admin->value('SELECT concat_ws($$ $$, cardinality(tags), n) FROM opted.lists WHERE k = 2'), '2 1', 'also of a row before in the same batch');
cmp_ok($admin->value(q{SELECT folded FROM weir.stat_coalesce WHERE relation = 'opted.lists'::regclass}), '>', $folded, 'they were folded');

# ---- what is sent after the commit must not fail

same('UPDATE typed SET name = name || 1 WHERE k = 1 RETURNING k, name, m, s', 1, 'RETURNING built-in types, a domain and an enum');
same('UPDATE typed SET name = name || 2 WHERE k = 1 RETURNING p', 0, 'RETURNING a composite');
$_->query('SET client_encoding = LATIN1') foreach $app, $plain;
same(q{UPDATE typed SET name = U&'\\20AC' WHERE k = 1}, 1, 'another encoding');
same('UPDATE typed SET name = name || 3 WHERE k = 1 RETURNING name', 0, 'another encoding, RETURNING');
$_->query('RESET client_encoding') foreach $app, $plain;
same_rows('typed');

# ---- nor has a worker the session's replication origin

$admin->query($_) foreach q{SELECT pg_replication_origin_create('peer')},
  map { "GRANT EXECUTE ON FUNCTION $_ TO app" } 'pg_replication_origin_session_setup(text)', 'pg_replication_origin_session_reset()';
$app->query(q{SELECT pg_replication_origin_session_setup('peer')});
same('UPDATE typed SET s = 4 WHERE k = 1', 0, 'a session with a replication origin');
$app->query('SELECT pg_replication_origin_session_reset()');
same('UPDATE typed SET s = 5 WHERE k = 1', 1, 'without it again');

# ---- the end

$holder->query('ROLLBACK');
$_->answer foreach @company;
nothing_left($admin, 'at the end');
unlike(slurp_file($node->logfile), qr/TRAP|PANIC|was terminated by signal|snapshot .* still active|resource was not closed|leaked/, 'nothing leaked');

done_testing();
