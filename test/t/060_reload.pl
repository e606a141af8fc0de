# Reload while sessions wait: they do not process SIGHUP, and yet every setting reaches them at once.

use strict;
use warnings;

use FindBin;
use lib $FindBin::RealBin;
use PgWeir;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes ();

my $node = gated_node('reload', max_connections => 30);
my $admin = admin_of($node);
$admin->query($_) foreach 'CREATE ROLE worker LOGIN', "ALTER ROLE worker SET weir.class = 'batch'";

my @apps = map { app_of($node) } 1 .. 6;
my @workers = map { app_of($node, user => 'worker') } 1 .. 4;

# Each sends BEGIN, one behind the other; the first $running have their slots.
sub queue_up
{
	my ($running, @sessions) = @_;
	my $before = admission($admin, 'waiting');
	$_->query('BEGIN') foreach @sessions[ 0 .. $running - 1 ];
	foreach my $i ($running .. $#sessions)
	{
		$sessions[$i]->send('BEGIN');
		wait_for_waiting($admin, $before + $i - $running + 1);
	}
	return;
}

# Tests: the first $count of these are let in, at once; the others wait on.
sub let_in
{
	my ($name, $count, @waiters) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my @in = map { my $a = $_->answer($PgWeir::at_once_s); $a ? "$a->{code}$a->{tag}" : 'none' } @waiters[ 0 .. $count - 1 ];
	is(join(' ', @in), join(' ', ('BEGIN') x $count), "$name: $count go on at once");
	return still_waiting($name, @waiters[ $count .. $#waiters ]);
}

sub still_waiting
{
	my ($name, @waiters) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return is(join(' ', map { $_->state($admin) } @waiters), join(' ', ('waiting') x @waiters), $name . ': ' . @waiters . ' wait on');
}

# Ends these transactions, whatever became of them.
sub end_all
{
	my ($name, @sessions) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	$_->query('COMMIT') foreach @sessions;
	return nothing_left($admin, $name);
}

# ---- the limit

queue_up(1, @apps);
reconfigure($admin, 'weir.max_active' => 3);
let_in('limit raised from 1 to 3', 2, @apps[ 1 .. 5 ]);
is($admin->value("SELECT string_agg(position::text, ' ' ORDER BY position) FROM weir.activity WHERE state = 'waiting'"),
	'0 1 2', 'those behind have moved up');

reconfigure($admin, 'weir.max_active' => 1);
is($admin->value("SELECT concat_ws(' ', limit_now, active) FROM weir.stat_admission"), '1 3', 'limit lowered: those who run go on');
$_->query('COMMIT') foreach @apps[ 0, 1 ];
still_waiting('limit lowered: slots over it are not handed on', @apps[ 3 .. 5 ]);
$apps[2]->query('COMMIT');
let_in('limit lowered, and drained', 1, @apps[ 3 .. 5 ]);

reconfigure($admin, 'weir.max_active' => 0);
let_in('no limit', 2, @apps[ 4, 5 ]);
is($admin->value('SELECT limit_now IS NULL FROM weir.stat_admission'), 't', 'weir.stat_admission shows no limit');
end_all('after no limit', @apps[ 3 .. 5 ]);

reconfigure($admin, 'weir.max_active' => 1);
queue_up(1, @apps);
reconfigure($admin, 'weir.max_active' => -1, 'weir.max_active_min' => 4, 'weir.max_active_max' => 4);
let_in('adaptive within 4 and 4', 3, @apps[ 1 .. 5 ]);
reconfigure($admin, 'weir.max_active_min' => 6, 'weir.max_active_max' => 6);
let_in('the bounds of the adaptive limit are raised', 2, @apps[ 4, 5 ]);
is($admin->value("SELECT concat_ws(' ', adaptive, limit_now) FROM weir.stat_admission"), 't 6', 'weir.stat_admission shows it');
end_all('after an adaptive limit', @apps);

# ---- the mode

foreach my $mode ('observe', 'off')
{
	reconfigure($admin, 'weir.mode' => 'enforce', 'weir.max_active' => 1);
	queue_up(1, @apps);
	reconfigure($admin, 'weir.mode' => $mode);
	let_in("mode $mode", 5, @apps[ 1 .. 5 ]);
	end_all("after mode $mode", @apps);
}
reconfigure($admin, 'weir.mode' => 'enforce');

# ---- timeouts

queue_up(1, @apps[ 0, 1 ]);
reconfigure($admin, 'weir.queue_timeout' => '1ms');
is($apps[1]->answer($PgWeir::at_once_s)->{code}, '53300', 'weir.queue_timeout lowered: who waits longer is refused at once');
reconfigure($admin, 'weir.queue_timeout' => '61s');
$apps[1]->send('BEGIN');
wait_for_waiting($admin, 1);
reconfigure($admin, 'weir.queue_timeout' => '1ms', 'weir.reject_as' => 'fatal');
my $answer = $apps[1]->answer($PgWeir::at_once_s);
is("$answer->{severity} $answer->{code}", 'FATAL 53300', 'as weir.reject_as says now');
$apps[1] = app_of($node);
reconfigure($admin, 'weir.reject_as' => 'error');
reconfigure($admin, 'weir.queue_timeout' => '1500ms');
$apps[1]->send('BEGIN');
wait_for_waiting($admin, 1);
reconfigure($admin, 'weir.queue_timeout' => 0);
poll_until('it waits longer', sub { $admin->value("SELECT clock_timestamp() - since > '1700ms' FROM weir.activity WHERE state = 'waiting'") eq 't' });
still_waiting('weir.queue_timeout = 0', $apps[1]);

# The launcher alone is told to reload: those who wait have it from the launcher.
$admin->query("ALTER SYSTEM SET weir.queue_timeout = '2ms'");
kill 'HUP', $admin->value("SELECT pid FROM pg_stat_activity WHERE backend_type = 'pg_weir launcher'");
$answer = $apps[1]->answer($PgWeir::at_once_s);
is($answer && $answer->{code}, '53300', 'the launcher tells those who wait');
reconfigure($admin);
$apps[1]->send('BEGIN');
wait_for_waiting($admin, 1);
$apps[0]->query('COMMIT');
let_in('after timeouts', 1, $apps[1]);
end_all('after timeouts', $apps[1]);

reconfigure($admin, 'weir.classes' => 'batch: queue_timeout=1h');
queue_up(1, @apps[ 0, 1 ]);
queue_up(0, @workers[ 0, 1 ]);
is($admin->value("SELECT queue_timeout FROM weir.stat_class WHERE class = 'batch'"), '01:00:00', 'a class has its own');
reconfigure($admin, 'weir.classes' => 'batch: queue_timeout=1ms');
is($_->answer($PgWeir::at_once_s)->{code}, '53300', "a class's queue_timeout lowered: who waits is refused") foreach @workers[ 0, 1 ];
still_waiting('another class', $apps[1]);
is($admin->value("SELECT concat_ws(' ', (SELECT timed_out FROM weir.stat_class WHERE class = 'batch'), (SELECT waiting FROM weir.stat_admission))"),
	'2 1', 'counted for the class');
$apps[0]->query('COMMIT');
let_in('another class', 1, $apps[1]);
end_all("after a class's timeout", $apps[1]);

# ---- the size of the queue

reconfigure($admin, 'weir.classes' => '');
queue_up(1, @apps[ 0 .. 3 ]);
reconfigure($admin, 'weir.queue_size' => 2);
still_waiting('queue shorter than what waits', @apps[ 1 .. 3 ]);
is($apps[4]->send('BEGIN')->answer($PgWeir::at_once_s)->{code}, '53300', 'a new one is refused');
reconfigure($admin, 'weir.queue_size' => 0);
$apps[4]->send('BEGIN');
wait_for_waiting($admin, 4);
pass('and not, when it is as long as before');
foreach my $i (0 .. 4)
{
	$apps[$i]->answer if $i > 0;
	$apps[$i]->query('COMMIT');
}
nothing_left($admin, 'after queue sizes');

# ---- classes come and go

reconfigure($admin, 'weir.max_active' => 10);
queue_up(2, @workers[ 0, 1 ]);
is($_->class($admin), 'default', 'a class that does not exist') foreach @workers[ 0, 1 ];
reconfigure($admin, 'weir.classes' => 'batch: max_active=1');
is($workers[0]->class($admin), 'default', 'a class is added: who runs stays where he was');
end_all('a class is added', @workers[ 0, 1 ]);
queue_up(1, @workers);
is($_->class($admin), 'batch', 'the next transaction is of the new class') foreach @workers[ 0, 1 ];
still_waiting('its limit is in force', @workers[ 1 .. 3 ]);

reconfigure($admin, 'weir.classes' => 'batch: max_active=2');
let_in("the class's limit raised", 1, @workers[ 1 .. 3 ]);
reconfigure($admin, 'weir.classes' => 'batch: max_active=1');
$workers[0]->query('COMMIT');
still_waiting("the class's limit lowered", @workers[ 2, 3 ]);
reconfigure($admin, 'weir.classes' => 'other: weight=3');
let_in('the class is removed, and its limit with it', 2, @workers[ 2, 3 ]);
is($admin->value("SELECT string_agg(class, ' ' ORDER BY class) FROM weir.stat_class"), 'default other', 'the views list the new classes');
is(admission($admin, 'active'), 3, 'who runs still counts');
$workers[0]->query('BEGIN');
is($workers[0]->class($admin), 'default', 'the next transaction is of the default class');
reconfigure($admin, 'weir.classes' => 'batch: max_active=4');
is($admin->value("SELECT active FROM weir.stat_class WHERE class = 'batch'"), 3, 'the class comes back: who runs is of it');
end_all('after classes', @workers);

# As many classes as there may be, all new, while somebody runs in an old one: his class keeps its place.
my @many = map { "c$_" } 1 .. 31;
reconfigure($admin, 'weir.classes' => join('; ', 'batch:', map { "$_:" } @many[ 0 .. 29 ]));
$workers[0]->query('BEGIN');
my $log_size = -s $node->logfile;
reconfigure($admin, 'weir.classes' => join('; ', map { "$_:" } @many));
is($workers[0]->class($admin), 'batch', 'a class that is removed keeps its place while somebody runs in it');
is($admin->value('SELECT count(*) FROM weir.stat_class'), 31, 'so there is room for one class less');
like(slurp_file($node->logfile, $log_size), qr/LOG:  pg_weir: 1 of the classes in weir\.classes found no room/, 'which is logged');
$workers[0]->query('COMMIT');
reconfigure($admin);
is($admin->value('SELECT count(*) FROM weir.stat_class'), 32, 'the next reload finds room');
reconfigure($admin, 'weir.classes' => 'batch: max_active=4');
nothing_left($admin, 'after many classes');

# A class map reaches the sessions that are connected.
reconfigure($admin, 'weir.class_map' => 'role=app => batch');
$apps[0]->query('BEGIN');
is($apps[0]->class($admin), 'batch', 'a new weir.class_map is asked for the next transaction');
reconfigure($admin, 'weir.class_map' => '');
is($apps[0]->class($admin), 'batch', 'not for the one that runs');
$apps[0]->query('COMMIT');
$apps[0]->query('BEGIN');
is($apps[0]->class($admin), 'default', 'emptied');
end_all('after a class map', $apps[0]);

# ---- mistakes in the file

reconfigure($admin, 'weir.classes' => 'batch: max_active=4 weight=3');
$admin->query("ALTER SYSTEM RESET $_") foreach qw(weir.classes weir.class_map weir.max_active weir.mode);
my %good = (
	'weir.classes' => 'batch: max_active=4 weight=3',
	'weir.class_map' => 'role=nobody => batch',
	'weir.max_active' => 7,
	'weir.mode' => 'enforce');
$node->append_conf('postgresql.conf', "$_ = '$good{$_}'") foreach sort keys %good;
reconfigure($admin);

# Appends a line and reloads. Returns what the server logged, when it has answered for the last time.
sub reload_with
{
	my ($line) = @_;
	my $before = -s $node->logfile;
	$node->append_conf('postgresql.conf', $line);
	reconfigure($admin);
	poll_until('the log says so', sub { slurp_file($node->logfile, $before) =~ /contains errors|parameter/ });
	return slurp_file($node->logfile, $before);
}

foreach my $mistake (
	[
		"weir.classes = 'batch: max_active=4; other: wieght=3'",
		qr/invalid value for parameter "weir\.classes": "batch: max_active=4; other: wieght=3"/,
		qr/DETAIL:  unknown setting "wieght": expected weight, .*, at character 29, after "batch: max_active=4; other: "\./,
		qr/HINT:  Write: name: key=value/
	],
	[
		"weir.class_map = 'role=x => batch; rolle=y => batch'",
		qr/invalid value for parameter "weir\.class_map"/,
		qr/DETAIL:  unknown key "rolle": expected .*, at character 18, after "role=x => batch; "\./,
		qr/HINT:  Write: key=pattern/
	],
	[ 'weir.max_active = many', qr/invalid value for parameter "weir\.max_active": "many"/ ],
	[ 'weir.max_active = -2', qr/-2 is outside the valid range for parameter "weir\.max_active" \(-1 \.\. 262143\)/ ],
	[ 'weir.mode = on', qr/invalid value for parameter "weir\.mode": "on"/, qr/HINT:  Available values: off, observe, enforce\./ ])
{
	my ($line, @logged) = @$mistake;
	my $log = reload_with($line);
	like($log, $_, "logged: $line") foreach @logged;
	my ($name) = $line =~ /(\S+)/;
	is($admin->value("SHOW $name"), $good{$name}, 'the old value stays');
	is($admin->value("SELECT concat_ws(' ', mode, limit_now, (SELECT concat_ws(' ', weight, max_active) FROM weir.stat_class WHERE class = 'batch'))
			FROM weir.stat_admission"), 'enforce 7 3 4', 'and is in force');
}
$node->append_conf('postgresql.conf', "$_ = '$good{$_}'") foreach sort keys %good;
my $log = reload_with('weir.max_active = 1');
unlike($log, qr/contains errors/, 'put right');
queue_up(1, @apps[ 0, 1 ]);
$apps[0]->query('COMMIT');
let_in('limit in force again', 1, $apps[1]);
end_all('in the end', $apps[1]);

no_warnings($node, 'no warning in the log of the server');

done_testing();
