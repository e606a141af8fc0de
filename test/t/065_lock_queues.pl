# In how many queues for locks the slot holders stand, as the adaptive limit sees it: weir.admission_history.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;

my $node = gated_node('queues', 'weir.max_active' => 20, 'deadlock_timeout' => '1h');
my $admin = admin_of($node);
$admin->query($_)
  foreach 'CREATE TABLE t (id int PRIMARY KEY, n int)', 'INSERT INTO t SELECT g, 0 FROM generate_series(1, 3) g',
  'GRANT ALL ON t TO app';

my @sessions;

# A session in a transaction that has run these.
sub holder
{
	my @statements = @_;
	my $session = app_of($node);
	push @sessions, $session;
	$session->query($_) foreach 'BEGIN', @statements;
	return $session;
}

# The same, and then the last of them waits for a lock.
sub blocked
{
	my @statements = @_;
	my $last = pop @statements;
	my $session = holder(@statements);
	$session->send($last);
	wait_for_lock($admin, $session);
	return;
}

# A test: in the last second so many waited for locks, in so many queues.
sub stand_in
{
	my ($waiting, $queues, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $seen = '';
	eval {
		poll_until(
			$name,
			sub {
				$seen = $admin->value(
					"SELECT concat_ws(' ', lock_waiting, lock_queues) FROM weir.admission_history ORDER BY at DESC LIMIT 1");
				$seen eq "$waiting $queues";
			});
	};
	return is($seen, "$waiting $queues", $name);
}

my $first = holder('UPDATE t SET n = n + 1 WHERE id = 1');
stand_in(0, 0, 'nobody waits');
blocked('UPDATE t SET n = n + 1 WHERE id = 1');
stand_in(1, 1, 'one waits for a row');
blocked('UPDATE t SET n = n + 1 WHERE id = 1') foreach 1 .. 3;
stand_in(4, 1, 'four wait for the same row, three of them behind the first');

my $second = holder('UPDATE t SET n = n + 1 WHERE id = 2');
blocked('UPDATE t SET n = n + 1 WHERE id = 3', 'UPDATE t SET n = n + 1 WHERE id = 2');
stand_in(5, 2, 'another waits for another row');
blocked('UPDATE t SET n = n + 1 WHERE id = 3');
stand_in(6, 2, 'who waits for one that waits itself stands in the same queue');

my $third = holder('SELECT pg_advisory_xact_lock(1)');
blocked('SELECT pg_advisory_xact_lock(1)') foreach 1 .. 2;
stand_in(8, 3, 'a lock that is no row');

$_->query('ROLLBACK') foreach $first, $second, $third;
$_->vanish foreach @sessions;
nothing_left($admin, 'locks and queues');
$node->stop;
done_testing();
