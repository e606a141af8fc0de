// Clients of a standby that wait for an LSN which the primary has not written yet; how soon after its replay
// are they answered?
//
//   waiters clients=N rounds=N
//
// In each round all clients call weir.wait_for_lsn() for the next record of the primary; when all wait, the
// primary writes it. A session that does nothing but ask the standby how far it has replayed says when that
// record was. The two threads that take the time have real-time priority, or a warning says that they have
// not. PRIMARY and STANDBY are connection strings of a superuser.
//
// Prints: P50 P99 MAX, in milliseconds, over all clients and rounds, and ASKED: the median time between two
// looks of the session that asks, the error of all the others.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include <libpq-fe.h>
#include <sched.h>
#include <sys/epoll.h>

namespace
{

using Clock = std::chrono::steady_clock;

int clients = 1, rounds = 100;

[[noreturn]] void Die(const char *what, PGconn *connection)
{
    fprintf(stderr, "waiters: %s: %s", what, PQerrorMessage(connection));
    exit(1);
}

PGconn *Connect(const char *variable)
{
    const char *where = getenv(variable);
    PGconn *connection = PQconnectdb(where != nullptr ? where : "");
    if (PQstatus(connection) != CONNECTION_OK)
        Die(variable, connection);
    return connection;
}

std::string Ask(PGconn *connection, const std::string &sql)
{
    PGresult *result = PQexec(connection, sql.c_str());
    if (PQresultStatus(result) != PGRES_TUPLES_OK && PQresultStatus(result) != PGRES_COMMAND_OK)
        Die(sql.c_str(), connection);
    std::string value = PQntuples(result) > 0 ? PQgetvalue(result, 0, 0) : "";
    PQclear(result);
    return value;
}

double MsSince(Clock::time_point then)
{
    return std::chrono::duration<double, std::milli>(Clock::now() - then).count();
}

// First in line for a processor, as if it were this thread's own: else it waits behind 200 backends that were
// woken together, and what is measured is when the clock was read, not when the answer was there.
void TakeTheTime()
{
    sched_param first = {};
    first.sched_priority = 1;
    if (sched_setscheduler(0, SCHED_FIFO, &first) != 0)
        perror("waiters: no priority for those who take the time: sched_setscheduler");
}

// Asks until the standby has replayed `lsn`. Returns when it was first seen to have.
Clock::time_point SeeReplayed(PGconn *standby, const std::string &lsn, std::vector<double> *asked)
{
    TakeTheTime();
    const std::string sql = "SELECT pg_last_wal_replay_lsn() >= '" + lsn + "'";
    for (;;) {
        const Clock::time_point before = Clock::now();
        if (Ask(standby, sql) == "t")
            return Clock::now();
        asked->push_back(MsSince(before));
    }
}

// When each client was answered: when something came for it. It is read when all have been, so that we take
// little of the processors that they need.
std::vector<Clock::time_point> Answers(const std::vector<PGconn *> &waiting, int watched)
{
    TakeTheTime();
    std::vector<Clock::time_point> when(waiting.size());
    for (size_t i = 0; i < waiting.size(); i++) {
        epoll_event event = {EPOLLIN | EPOLLONESHOT, {}};
        event.data.u64 = i;
        epoll_ctl(watched, EPOLL_CTL_MOD, PQsocket(waiting[i]), &event);
    }
    epoll_event events[64];
    for (size_t left = waiting.size(); left > 0;) {
        const int count = epoll_wait(watched, events, 64, -1);
        const Clock::time_point now = Clock::now();
        for (int i = 0; i < count; i++, left--)
            when[events[i].data.u64] = now;
    }
    for (PGconn *connection : waiting) {
        PGresult *result = PQgetResult(connection);
        if (PQresultStatus(result) != PGRES_COMMAND_OK)
            Die("wait_for_lsn", connection);
        PQclear(result);
        PQclear(PQgetResult(connection));
    }
    return when;
}

// All of these sockets; Answers() says when to look at them.
int Watch(const std::vector<PGconn *> &waiting)
{
    const int watched = epoll_create1(0);
    for (PGconn *connection : waiting) {
        epoll_event none = {};
        epoll_ctl(watched, EPOLL_CTL_ADD, PQsocket(connection), &none);
    }
    return watched;
}

// Not if another record (a heartbeat, running transactions) came before ours: such a round does not count.
bool AllWait(PGconn *standby)
{
    const Clock::time_point began = Clock::now();
    while (Ask(standby, "SELECT waiting FROM weir.stat_replay_wait") != std::to_string(clients))
        if (MsSince(began) > 1000)
            return false;
    return true;
}

void ReadOption(const char *argument)
{
    if (sscanf(argument, "clients=%d", &clients) != 1 && sscanf(argument, "rounds=%d", &rounds) != 1) {
        fprintf(stderr, "waiters: what is %s?\n", argument);
        exit(2);
    }
}

double Percentile(std::vector<double> *values, double part)
{
    std::sort(values->begin(), values->end());
    return values->empty() ? 0
                           : (*values)[static_cast<size_t>(part * static_cast<double>(values->size() - 1))];
}

} // namespace

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        ReadOption(argv[i]);
    PGconn *primary = Connect("PRIMARY"), *standby = Connect("STANDBY"), *asking = Connect("STANDBY");
    std::vector<PGconn *> waiting;
    while (waiting.size() < static_cast<size_t>(clients))
        waiting.push_back(Connect("STANDBY"));
    const int watched = Watch(waiting);
    std::vector<double> latencies, asked;
    for (int round = 0; round < rounds; round++) {
        const std::string lsn = Ask(primary, "SELECT pg_current_wal_insert_lsn() + 8");
        for (PGconn *connection : waiting)
            if (PQsendQuery(connection, ("CALL weir.wait_for_lsn('" + lsn + "'::pg_lsn, '20 s')").c_str()) !=
                1)
                Die("send", connection);
        const bool all_wait = AllWait(standby);
        Clock::time_point replayed;
        std::thread observer([&] { replayed = SeeReplayed(asking, lsn, &asked); });
        std::vector<Clock::time_point> answered;
        std::thread collector([&] { answered = Answers(waiting, watched); });
        Ask(primary, "SELECT pg_logical_emit_message(true, 'waiters', 'x')");
        collector.join();
        observer.join();
        if (!all_wait)
            continue;
        for (const Clock::time_point at : answered)
            latencies.push_back(
                std::max(0.0, std::chrono::duration<double, std::milli>(at - replayed).count()));
    }
    printf("%.3f %.3f %.3f %.3f\n", Percentile(&latencies, 0.5), Percentile(&latencies, 0.99),
           Percentile(&latencies, 1), Percentile(&asked, 0.5));
    return 0;
}
