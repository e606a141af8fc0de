#pragma once

// A server under closed-loop load in simulated time, for the tests of the adaptive limit: sessions without
// think time behind a FIFO gate, processors shared equally by all who are ready to run, rows locked until the
// commit is flushed. Deterministic: the same seed gives the same run.
//
// What is modelled because it decides which limit is right, and where its figures come from (pgbench and
// PostgreSQL 15 on a 2-core machine, fsync about 150 us; AdaptiveSimulator.* in adaptive_limit_test.cpp
// compares):
//  - A transaction is a list of steps. Between two statements its client has to run too, on the same machine.
//    pgbench's threads serve their clients one by one, so they are kClientThreadsPerCore queues, not a job
//    per client: that is why few SELECT 1 are in the server at once, however many clients there are.
//  - Who had to queue at the gate costs kHandOffUs more: a signal and two context switches.
//  - Who had to wait for a row costs more the more wait beside it, WaiterCostUs: the tuple lock changes
//  hands, the row is
//    looked up again, and past deadlock_timeout every waiter searches the queue. It is paid with the row
//    locked, so throughput falls.

#include <algorithm>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <queue>
#include <vector>

#include "admission/adaptive_limit.hpp"

namespace weir::simulator
{

constexpr double kHandOffUs = 15;
constexpr double kFlushUs = 150;
constexpr uint32_t kClientThreadsPerCore = 1;
constexpr uint32_t kRows = 64;
constexpr size_t kMostLocks = 4;

// xorshift64: the standard library's distributions differ between implementations.
class Random
{
  public:
    explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}

    uint64_t Next()
    {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_;
    }

    // In [low, high).
    double Uniform(double low, double high)
    {
        return low + (high - low) * (static_cast<double>(Next() >> 11) / 9007199254740992.0);
    }

    uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(Uniform(0, bound)); }

  private:
    uint64_t state_;
};

enum class StepKind {
    kCpu,    // the backend runs for `us`
    kClient, // the next statement comes when the client's thread has run for `us`
    kSleep,  // disk, timer: no processor for `us`
    kLock,   // one of the rows [row, row + rows), until the end of the transaction
};

struct Step {
    StepKind kind;
    double us;
    uint32_t row;
    uint32_t rows;
};

inline Step Cpu(double us)
{
    return {StepKind::kCpu, us, 0, 0};
}

inline Step Client(double us)
{
    return {StepKind::kClient, us, 0, 0};
}

inline Step Sleep(double us)
{
    return {StepKind::kSleep, us, 0, 0};
}

inline Step Lock(uint32_t row, uint32_t rows)
{
    return {StepKind::kLock, 0, row, rows};
}

struct Program {
    double share;     // of the transactions, relative to the others of its mix
    double client_us; // the client's own work between two transactions
    std::vector<Step> steps;
};

using Mix = std::vector<Program>;

// `beside` wait for the same row, `all` for any.
inline double WaiterCostUs(double beside, double all)
{
    return 430 * std::clamp((beside - 3) / 8, 0.0, 1.0) + 7 * std::max(all - 90, 0.0);
}

class Server
{
  public:
    Server(uint32_t cores, uint32_t clients, Mix mix, uint64_t seed)
        : cores_(cores), random_(seed), threads_(static_cast<size_t>(cores) * kClientThreadsPerCore)
    {
        mixes_.push_back(std::move(mix));
        SetClients(clients);
    }

    // For the transactions that begin from now on.
    void Use(Mix mix) { mixes_.push_back(std::move(mix)); }

    // Clients beyond the new number end with their transaction.
    void SetClients(uint32_t clients)
    {
        clients_ = clients;
        while (sessions_.size() < clients)
            sessions_.emplace_back();
        for (uint32_t id = 0; id < clients; id++)
            if (sessions_[id].parked) {
                sessions_[id].parked = false;
                AskClient(id, 1);
            }
    }

    void SetLimit(uint32_t limit)
    {
        limit_ = limit;
        Dispatch();
    }

    // Runs for one control interval, looking at the slot holders as the launcher does.
    AdaptiveSample Observe(double interval_s, int looks)
    {
        AdaptiveSample sample = {};
        const uint64_t finished = finished_;
        for (int i = 0; i < looks; i++) {
            Run(interval_s * 1e6 / looks);
            sample.active += static_cast<double>(active_) / looks;
            sample.running += static_cast<double>(running_) / looks;
            sample.lock_waiting += static_cast<double>(lock_waiting_) / looks;
            for (const Row &row : rows_)
                sample.queues += row.waiters.empty() ? 0 : 1.0 / looks;
            sample.waiting += static_cast<double>(gate_.size()) / looks;
        }
        sample.interval_s = interval_s;
        sample.finished = finished_ - finished;
        return sample;
    }

    void Run(double us)
    {
        const double end_us = now_us_ + us;
        for (;;) {
            const double rate = jobs_.empty() ? 0 : std::min(1.0, cores_ / static_cast<double>(jobs_.size()));
            const double job_us = jobs_.empty() ? kNever : now_us_ + (jobs_.top().at - work_us_) / rate;
            const double timer_us = timers_.empty() ? kNever : timers_.top().at;
            const double next_us = std::min({job_us, timer_us, end_us});
            work_us_ += (next_us - now_us_) * rate;
            now_us_ = next_us;
            if (job_us > end_us && timer_us > end_us)
                return;
            if (job_us <= timer_us)
                EndJob();
            else {
                const uint32_t id = timers_.top().id;
                timers_.pop();
                GoOn(id);
            }
        }
    }

    uint64_t finished() const { return finished_; }

    double now_s() const { return now_us_ / 1e6; }

  private:
    static constexpr double kNever = std::numeric_limits<double>::infinity();
    static constexpr uint32_t kNobody = UINT32_MAX;
    static constexpr uint32_t kThreadIds = 1u
                                           << 31; // ids of jobs: sessions, and from here on clients' threads

    struct Session {
        const Program *program = nullptr;
        size_t step = 0;
        uint32_t locks[kMostLocks] = {};
        size_t lock_count = 0;
        bool flushed = false;
        bool has_slot = false;
        bool parked = true;
    };

    struct Row {
        uint32_t owner = kNobody;
        std::deque<uint32_t> waiters;
    };

    struct Event {
        double at; // timers: time; jobs: when as much work has been done for each runnable
        uint32_t id;

        bool operator>(const Event &other) const { return at != other.at ? at > other.at : id > other.id; }
    };

    using Events = std::priority_queue<Event, std::vector<Event>, std::greater<>>;

    double Jitter(double us) { return us * random_.Uniform(0.7, 1.3); }

    void StartCpu(uint32_t id, double us)
    {
        running_++;
        jobs_.push({work_us_ + us, id});
    }

    void EndJob()
    {
        const uint32_t id = jobs_.top().id;
        jobs_.pop();
        if (id < kThreadIds) {
            running_--;
            GoOn(id);
            return;
        }
        std::deque<uint32_t> &thread = threads_[id - kThreadIds];
        const uint32_t served = thread.front();
        thread.pop_front();
        if (!thread.empty())
            jobs_.push({work_us_ + Jitter(client_us_[thread.front()]), id});
        if (sessions_[served].has_slot)
            GoOn(served);
        else
            Arrive(served);
    }

    void AskClient(uint32_t id, double us)
    {
        const uint32_t thread = id % static_cast<uint32_t>(threads_.size());
        client_us_.resize(sessions_.size());
        client_us_[id] = us;
        threads_[thread].push_back(id);
        if (threads_[thread].size() == 1)
            jobs_.push({work_us_ + Jitter(us), kThreadIds + thread});
    }

    void Arrive(uint32_t id)
    {
        if (id >= clients_) {
            sessions_[id].parked = true;
            return;
        }
        Session &s = sessions_[id];
        s.program = &Choose();
        s.step = 0;
        s.flushed = false;
        if (gate_.empty() && active_ < limit_) {
            active_++;
            s.has_slot = true;
            GoOn(id);
        } else
            gate_.push_back(id);
    }

    void Dispatch()
    {
        while (!gate_.empty() && active_ < limit_) {
            const uint32_t id = gate_.front();
            gate_.pop_front();
            active_++;
            sessions_[id].has_slot = true;
            StartCpu(id, kHandOffUs);
        }
    }

    const Program &Choose()
    {
        const Mix &mix = mixes_.back();
        double total = 0;
        for (const Program &program : mix)
            total += program.share;
        double left = random_.Uniform(0, total);
        for (const Program &program : mix)
            if ((left -= program.share) < 0)
                return program;
        return mix.back();
    }

    void GoOn(uint32_t id)
    {
        Session &s = sessions_[id];
        while (s.step < s.program->steps.size()) {
            const Step &step = s.program->steps[s.step++];
            if (step.kind == StepKind::kCpu)
                return StartCpu(id, Jitter(step.us));
            if (step.kind == StepKind::kClient)
                return AskClient(id, step.us);
            if (step.kind == StepKind::kSleep)
                return timers_.push({now_us_ + Jitter(step.us), id});
            if (!TakeLock(id, step.row + random_.Below(step.rows)))
                return;
        }
        if (s.lock_count > 0 && !s.flushed) {
            s.flushed = true;
            return timers_.push({now_us_ + Jitter(kFlushUs), id});
        }
        Finish(id);
    }

    bool TakeLock(uint32_t id, uint32_t row)
    {
        Session &s = sessions_[id];
        s.locks[s.lock_count++] = row;
        if (rows_[row].owner == kNobody) {
            rows_[row].owner = id;
            return true;
        }
        rows_[row].waiters.push_back(id);
        lock_waiting_++;
        return false;
    }

    void GiveLock(uint32_t number)
    {
        Row &row = rows_[number];
        if (row.waiters.empty()) {
            row.owner = kNobody;
            return;
        }
        const double cost_us = WaiterCostUs(static_cast<double>(row.waiters.size()), lock_waiting_);
        row.owner = row.waiters.front();
        row.waiters.pop_front();
        lock_waiting_--;
        StartCpu(row.owner, cost_us);
    }

    void Finish(uint32_t id)
    {
        Session &s = sessions_[id];
        for (size_t i = 0; i < s.lock_count; i++)
            GiveLock(s.locks[i]);
        s.lock_count = 0;
        s.has_slot = false;
        active_--;
        finished_++;
        AskClient(id, s.program->client_us);
        Dispatch();
    }

    const uint32_t cores_;
    Random random_;
    std::deque<Mix> mixes_; // all that were ever used: transactions point into them
    uint32_t clients_ = 0;
    uint32_t limit_ = UINT32_MAX;
    std::vector<Session> sessions_;
    std::vector<double> client_us_;             // by session: the work that its thread has for it
    std::vector<std::deque<uint32_t>> threads_; // clients to serve, the first is being served
    std::deque<uint32_t> gate_;
    Row rows_[kRows];
    Events jobs_;
    Events timers_;
    double now_us_ = 0;
    double work_us_ = 0; // what a job that was always there would have got
    uint32_t active_ = 0;
    uint32_t running_ = 0;
    uint32_t lock_waiting_ = 0;
    uint64_t finished_ = 0;
};

// The workloads, calibrated to the measured ones.

// TPC-B-like, one branch.
inline Mix HotRows()
{
    return {{1,
             130,
             {Cpu(30), Client(130), Cpu(140), Client(130), Cpu(80), Client(130), Cpu(120), Client(130),
              Lock(0, 1), Cpu(120), Client(130), Cpu(100), Client(130), Cpu(60)}}};
}

inline Mix Computing(double us)
{
    return {{1, 25, {Cpu(us)}}};
}

// BEGIN; SELECT pg_sleep(0.02); END.
inline Mix Sleeping()
{
    return {{1, 40, {Cpu(25), Client(45), Cpu(50), Sleep(21500), Cpu(35), Client(45), Cpu(25)}}};
}

inline Mix ReadsAndHotRows()
{
    Mix mix = HotRows();
    mix.push_back({4, 25, {Cpu(80)}});
    return mix;
}

inline Mix SleepersAndHotRows()
{
    Mix mix = HotRows();
    mix.push_back(Sleeping()[0]);
    mix[1].share = 10;
    return mix;
}

// A client that does something else for 10 ms while its transaction holds a row.
inline Mix RowsHeldLong(uint32_t rows)
{
    return {{1,
             40,
             {Cpu(30), Client(40), Lock(0, rows), Cpu(150), Client(40), Sleep(10000), Cpu(30), Client(40),
              Cpu(30)}}};
}

inline Mix TenWarmRows()
{
    return {{1, 40, {Cpu(30), Client(40), Lock(0, 10), Cpu(150), Client(40), Cpu(30), Client(40), Cpu(30)}}};
}

} // namespace weir::simulator
