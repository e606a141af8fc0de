#include "admission/refusal.hpp"

#include "admission/retry_delay.hpp"
#include "pg/shared.hpp"

extern "C" {
#include "common/pg_prng.h"
#include "utils/timestamp.h"
}

namespace weir
{

namespace
{

int RefusalLevel()
{
    return shared->settings.reject_as_fatal.load() ? FATAL : ERROR;
}

double AdmittedPerSecond()
{
    const LimitHistory &history = shared->supervision.history;
    const uint64_t written = history.written.load(std::memory_order_acquire);
    return written == 0 ? 0 : history.samples[(written - 1) % kHistorySamples].admitted_per_second;
}

void DetailOfLimit(const GateClass &c)
{
    const uint32_t active = Gate::ClassActive(c);
    const uint32_t limit = gate.shared().limit.load();
    if (c.max_active != 0 && active >= c.max_active)
        errdetail("Class \"%s\" runs %u of at most %u transactions (its max_active); waiting in it: %u.",
                  c.name, active, c.max_active, c.waiting.load());
    else
        errdetail(
            "Transactions that run: %u, the limit is %u (weir.max_active%s); waiting: %u, of them in class "
            "\"%s\": %u.",
            gate.Active(), limit, shared->supervision.adapting ? ", adaptive" : "", gate.Waiting(), c.name,
            c.waiting.load());
}

constexpr double kLongestRetry = 60;

double Drawn(uint32_t ahead, double rate, double longest_s)
{
    return RetryDelay(ahead, rate, longest_s, pg_prng_double(&pg_global_prng_state));
}

// A class with a rate of its own may be slower than the whole queue.
double StartupRetrySeconds(const GateClass &c)
{
    // By then whoever waits now has been served, or has given up.
    const int32_t timeout_ms = startup_gate.QueueTimeoutMs(kDefaultClass);
    const double longest_s = timeout_ms > 0 ? Min(timeout_ms / 1000.0, kLongestRetry) : kLongestRetry;
    const uint32_t in_all = startup_gate.Waiting(), in_class = c.waiting.load();
    const double rate = shared->startups.pace.queue_rate, class_rate = c.pace.PerSecond();
    if (class_rate > 0 && (in_class + 1) * rate > (in_all + 1) * class_rate)
        return Drawn(in_class, class_rate, longest_s);
    return Drawn(in_all, rate, longest_s);
}

// What holds it: a number of its class or of the gate that is reached, else the lower of their rates.
void DetailOfStartup(const GateClass &c)
{
    const GateShared &g = startup_gate.shared();
    const uint32_t of_class = Gate::ClassActive(c), active = startup_gate.Active(), limit = g.limit.load();
    const double rate = g.pace.PerSecond(), class_rate = c.pace.PerSecond();
    const bool adapts = StartupRateAdapts(shared->startups);
    const bool full = active >= limit && !adapts;
    if (c.max_active != 0 && of_class >= c.max_active)
        errdetail(
            "Class \"%s\" starts %u of at most %u connections at once (its max_startups); waiting in it: %u.",
            c.name, of_class, c.max_active, c.waiting.load());
    else if (!full && class_rate > 0 && (rate <= 0 || class_rate <= rate))
        errdetail("Class \"%s\" starts %.1f connections a second (its startup_rate); waiting in it: %u.",
                  c.name, class_rate, c.waiting.load());
    else if (!full && rate > 0)
        errdetail("%.1f connections a second are started (%s); waiting: %u, of them in class \"%s\": %u.",
                  rate, adapts ? "weir.max_startups, adaptive" : "weir.startup_rate", startup_gate.Waiting(),
                  c.name, c.waiting.load());
    else
        errdetail("Connections that start: %u, the limit is %u (weir.max_startups); waiting: %u, of them in "
                  "class \"%s\": %u.",
                  active, limit, startup_gate.Waiting(), c.name, c.waiting.load());
}

} // namespace

double RetryDelaySeconds(uint32_t ahead)
{
    return Drawn(ahead, AdmittedPerSecond(), kLongestRetry);
}

void RefuseTimedOut(uint32_t class_id, int64_t waited_us)
{
    const GateClass &c = gate.group(class_id);
    ereport(RefusalLevel(),
            (errcode(ERRCODE_TOO_MANY_CONNECTIONS),
             errmsg("no transaction slot became free within %.1f s", static_cast<double>(waited_us) / 1e6),
             (DetailOfLimit(c), 0), errhint("Retry in about %.1f s.", RetryDelaySeconds(c.waiting.load()))));
    pg_unreachable();
}

void RefuseQueueFull(uint32_t class_id)
{
    const GateClass &c = gate.group(class_id);
    const uint32_t waiting = c.waiting.load();
    const bool by_class = c.queue_size != 0 && waiting >= c.queue_size;
    ereport(RefusalLevel(),
            (errcode(ERRCODE_TOO_MANY_CONNECTIONS), errmsg("too many transactions wait for a slot"),
             by_class ? errdetail("Waiting in class \"%s\": %u, its queue_size is %u.", c.name, waiting,
                                  c.queue_size)
                      : errdetail("Waiting: %u, weir.queue_size is %u; class \"%s\".", gate.Waiting(),
                                  gate.shared().queue_size.load(), c.name),
             errhint("Retry in about %.1f s.", RetryDelaySeconds(gate.Waiting()))));
    pg_unreachable();
}

void RefuseStartupTimedOut(uint32_t class_id, int64_t waited_us)
{
    const GateClass &c = startup_gate.group(class_id);
    ereport(FATAL, (errcode(shared->startups.sqlstate.load()),
                    errmsg("the connection could not be started within %.1f s",
                           static_cast<double>(waited_us) / 1e6),
                    (DetailOfStartup(c), 0), errhint("Retry in about %.1f s.", StartupRetrySeconds(c))));
    pg_unreachable();
}

void RefuseStartupQueueFull(uint32_t class_id, bool places)
{
    const GateClass &c = startup_gate.group(class_id);
    ereport(FATAL,
            (errcode(shared->startups.sqlstate.load()), errmsg("too many connections wait for their startup"),
             places ? errdetail("Waiting: %u, weir.startup_queue_size is %u; class \"%s\".",
                                startup_gate.Waiting(), startup_gate.shared().queue_size.load(), c.name)
                    : errdetail("Waiting: %u, and nearly all of max_connections (%d) is taken.",
                                startup_gate.Waiting(), MaxConnections),
             errhint("Retry in about %.1f s.", StartupRetrySeconds(c))));
    pg_unreachable();
}

void RefuseQuarantined()
{
    const QuarantineShared &own = shared->routing.own;
    const auto seconds = [](int64_t us) { return static_cast<double>(us) / USECS_PER_SEC; };
    ereport(FATAL,
            (errcode(ERRCODE_CANNOT_CONNECT_NOW),
             errmsg("this standby is in quarantine because of its replay lag"),
             errdetail("Its replay lag is %.1f s, and was over weir.quarantine_lag (%.1f s) %.1f s ago.",
                       seconds(shared->replicas.own_lag_us.load()), seconds(own.limit_us.load()),
                       seconds(GetCurrentTimestamp() - own.last_over_us.load())),
             errhint("Connect to another server: clients that are given several hosts do so by themselves. "
                     "This one takes connections again when it has been within that for %.1f s "
                     "(weir.quarantine_hold).",
                     seconds(own.hold_us.load()))));
    pg_unreachable();
}

} // namespace weir
