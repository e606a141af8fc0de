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
	  'ALTER TABLE large ALTER external SET STORAGE EXTERNAL';
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

# ---- the end

$holder->query('ROLLBACK');
$_->answer foreach @company;
nothing_left($admin, 'at the end');
unlike(slurp_file($node->logfile), qr/TRAP|PANIC|was terminated by signal|snapshot .* still active|resource was not closed|leaked/, 'nothing leaked');

done_testing();
