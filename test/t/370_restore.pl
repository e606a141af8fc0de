# A base backup that was taken under load, restored to a point in time: what was acknowledged before that point is there, and what came after
# is not; it goes on with the library, and as well without it.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use Faults;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{SEED} // time;
note("SEED=$seed");

my $node = gated_node(
	'backed_up',
	node => { allows_streaming => 1, has_archiving => 1 },
	'weir.max_active' => 8,
	'max_connections' => 60,
	'log_statement' => 'none',
	'max_worker_processes' => 16);
my $admin = admin_of($node);
Faults::make_tables($admin, coalesced => 1);
$admin->query($_) foreach 'CREATE TABLE markers (what text)', 'GRANT EXECUTE ON FUNCTION weir.submit TO app', q{SELECT weir.limit_query(1, 5)};
my $clients = Faults->start($node, clients => 24, seed => $seed);
$clients->go;
$clients->progress(300);
$node->backup('under_load');
$clients->progress(300);
is_coalesced($admin, $_, 100) foreach qw(faults_rows faults_counters);
$clients->is_right('before the point');
my $keyed = q{SELECT weir.submit('UPDATE faults_counters SET n = n + 1 WHERE id = 1', key => 'once')};
is(app_of($node)->value($keyed), 1, 'a unit with a key');
my $contents = q{SELECT (SELECT count(*) FROM faults_rows) || ' ' || (SELECT sum(n) FROM faults_counters)};
my $before = $admin->value($contents);
$admin->query($_) foreach q{INSERT INTO markers VALUES ('before')}, q{SELECT pg_create_restore_point('here')}, q{INSERT INTO markers VALUES ('after')};
$clients->go;
$clients->progress(100);
$clients->stop;
my $segment = $admin->value('SELECT pg_walfile_name(pg_switch_wal())');
poll_until('all is archived', sub { $admin->value("SELECT last_archived_wal >= '$segment' FROM pg_stat_archiver") eq 't' });
$node->stop('immediate');

sub restored
{
	my ($name, %settings) = @_;
	my $restored = PostgreSQL::Test::Cluster->new($name);
	$restored->init_from_backup($node, 'under_load', has_restoring => 1, standby => 0);
	my %all = (archive_mode => 'off', recovery_target_name => 'here', recovery_target_action => 'promote', %settings);
	$restored->append_conf('postgresql.conf', "$_ = '$all{$_}'") foreach sort keys %all;
	$restored->start;
	my $session = admin_of($restored);
	poll_until("$name: recovery ends", sub { $session->value('SELECT pg_is_in_recovery()') eq 'f' });
	is($session->value($contents), $before, "$name: what was acknowledged before the point");
	is($session->value(q{SELECT string_agg(what, ' ') FROM markers}), 'before', "$name: and nothing later");
	return ($restored, $session);
}

my ($with, $session) = restored('with_library');
is($session->value(q{SELECT string_agg(relation::text, ' ' ORDER BY relation::text) FROM weir.coalesced_table}), 'faults_counters faults_rows', 'tables are opted in');
is(app_of($with)->value($keyed), 1, 'the key is known');
is($session->value($contents), $before, 'and its unit not executed again');
is($session->value('SELECT count(*) FROM weir.query_rules'), 1, 'a rule is in force');
my @sessions = map { app_of($with) } 1 .. 16;
my $updates = 0;
poll_until(
	'batches',
	sub {
		$_->send('UPDATE faults_counters SET n = n + 1 WHERE id = 2') foreach @sessions;
		$updates += $_->answer->{tag} eq 'UPDATE 1' foreach @sessions;
		$session->value(q{SELECT sum(requests) > 100 FROM weir.stat_coalesce WHERE relation = 'faults_counters'::regclass}) eq 't';
	});
my ($rows, $sum) = split / /, $before;
is($session->value($contents), $rows . ' ' . ($sum + $updates), 'batches go on');
$with->stop('immediate');

my ($without, $plain) = restored('without_library', shared_preload_libraries => '');
my $app = app_of($without);
is($app->value(q{INSERT INTO faults_rows (client, number, part) VALUES (99, 1, 1) RETURNING part}), 1, 'without the library: a table that is opted in is written');
is($app->send('UPDATE faults_counters SET n = n + 1')->answer->{tag}, 'UPDATE 8', 'and updated');
my $answer = $app->send($keyed)->answer;
is($answer->{code}, '55000', 'weir.submit() says what is missing');
like("$answer->{message} $answer->{hint}", qr/shared_preload_libraries/, 'and where');
is($app->send('ALTER TABLE faults_rows ADD more int')->answer->{code}, '', 'altered');
is($app->send('DROP TABLE faults_counters')->answer->{code}, '', 'and dropped');

done_testing();
