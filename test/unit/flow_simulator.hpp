#pragma once

// A primary with writers behind a FlowBucket, and standbys that replay at a rate, in simulated time: 1 ms a
// step, a sample of lag each 100 ms. Deterministic: the same seed gives the same run.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <deque>
#include <random>
#include <vector>

#include "replicas/flow_bucket.hpp"
#include "replicas/flow_control.hpp"

namespace weir::flow_simulator
{

struct Client {
    bool batch = false;
    int64_t position = -1; // in the line it stands in; -1: none
    uint32_t line = 0;     // which line that is
    int64_t held = 0;
    double to_write = 0; // of the running transaction
    double transaction = 0;
    double estimate = 1000;
};

struct Standby {
    double capacity = 10e6; // bytes per second
    double report_s = 0.01; // how often the primary hears of it
    double apply_delay_s = 0;
    bool paused = false;
    bool connected = true;
    bool listed = true;
    double replayed = 0;
    double reported = 0;
    int64_t reported_us = 0;
};

struct World {
    std::vector<Client> clients;
    std::vector<Standby> standbys{1};
    std::vector<FlowStandby> states{FlowStandby{}};
    FlowController controller = {};
    FlowBucket buckets[kFlowLanes] = {};
    FlowTargets targets = {2000000, 0, 10000000, 64 * 1024};
    uint32_t quorum = 1;
    double transaction_bytes = 8000;
    double client_rate = 1e6; // bytes per second that one client writes when nobody holds it
    double others = 0;        // bytes per second that nobody rules
    double noise = 0;         // of the standby's rate: it stalls for a while now and then
    double dense = 0;         // bytes per second, of records that are small and take long to replay:
    double dense_cost = 30;   // so many times as long as others of their size
    std::deque<std::pair<double, double>> dense_wal; // end of what was written in a step, share that is dense
    std::mt19937 random{7};

    int64_t now_us = 1000000000;
    double wal = 0;
    std::deque<std::pair<double, int64_t>> clock; // end of WAL, time
    int64_t stalled_until_us = 0;
    double written[kFlowLanes] = {};
    bool trace = false;
    std::vector<uint32_t> changes; // of standing, by standby

    explicit World(uint32_t client_count = 100) : clients(client_count) {}

    double Demand() const { return client_rate * static_cast<double>(clients.size()); }

    // Age of the oldest WAL behind the position.
    double LagS(double position) const
    {
        auto found = std::upper_bound(clock.begin(), clock.end(), position,
                                      [](double p, const auto &entry) { return p < entry.first; });
        return found == clock.end() ? 0 : static_cast<double>(now_us - found->second) / 1e6;
    }
    double TrueLagS(size_t i = 0) const { return LagS(standbys[i].replayed); }

    void Join(Client *client, uint32_t line)
    {
        client->line = line;
        client->position = buckets[line].Reserve(client->held);
        buckets[line].waiting_bytes += client->held;
    }

    // True: it may write.
    bool Admit(Client *client)
    {
        if (client->position < 0) {
            client->held = static_cast<int64_t>(client->estimate);
            Join(client, client->batch ? 0 : 1);
        }
        while (buckets[client->line].LeftUs(client->position, now_us) == 0) {
            buckets[client->line].waiting_bytes -= client->held;
            if (client->line == 1)
                return true;
            Join(client, 1);
        }
        return false;
    }

    void StepClient(Client *client, double seconds)
    {
        double left = client_rate * seconds;
        while (left > 0) {
            if (client->to_write <= 0) {
                if (!Admit(client))
                    return;
                client->transaction = transaction_bytes * std::uniform_real_distribution<>(0.5, 1.5)(random);
                client->to_write = client->transaction;
            }
            const double now = std::min(left, client->to_write);
            wal += now;
            written[client->batch ? 0 : 1] += now;
            client->to_write -= now;
            left -= now;
            if (client->to_write > 0)
                return;
            const auto bytes = static_cast<int64_t>(client->transaction);
            if (client->batch)
                buckets[0].Charge(bytes, client->held);
            buckets[1].Charge(bytes, client->held);
            client->estimate += (client->transaction - client->estimate) / 4;
            client->position = -1;
        }
    }

    // `bytes` of ordinary WAL, or what takes as long.
    void Replay(Standby *standby, double limit, double bytes)
    {
        auto at = std::upper_bound(dense_wal.begin(), dense_wal.end(), standby->replayed,
                                   [](double p, const auto &entry) { return p < entry.first; });
        while (bytes > 0 && standby->replayed < limit) {
            const bool listed_here = at != dense_wal.end();
            const double cost = listed_here ? 1 + at->second * (dense_cost - 1) : 1;
            const double end = listed_here ? std::min(at->first, limit) : limit;
            const double done = std::min(bytes / cost, end - standby->replayed);
            standby->replayed += done;
            bytes -= done * cost;
            if (listed_here && standby->replayed >= at->first)
                ++at;
            else if (done < end - standby->replayed || done <= 0)
                break;
        }
    }

    void StepStandby(Standby *standby, double seconds)
    {
        if (standby->paused || !standby->connected || now_us < stalled_until_us)
            return;
        double limit = wal;
        if (standby->apply_delay_s > 0) {
            const auto ripe = now_us - static_cast<int64_t>(standby->apply_delay_s * 1e6);
            const auto end = std::upper_bound(clock.begin(), clock.end(), ripe,
                                              [](int64_t t, const auto &entry) { return t < entry.second; });
            limit = end == clock.begin() ? standby->replayed : std::max(standby->replayed, (end - 1)->first);
        }
        Replay(standby, limit, standby->capacity * seconds);
        if (static_cast<double>(now_us - standby->reported_us) / 1e6 >= standby->report_s) {
            standby->reported = standby->replayed;
            standby->reported_us = now_us;
        }
    }

    void Sample()
    {
        bool listed[kMaxFlowStandbys];
        states.resize(standbys.size());
        changes.resize(standbys.size());
        for (size_t i = 0; i < standbys.size(); i++) {
            const Standby &standby = standbys[i];
            listed[i] = standby.listed;
            const StandbySample sample = {standby.connected, static_cast<uint64_t>(standby.reported) + 1,
                                          static_cast<int64_t>(LagS(standby.reported) * 1e6),
                                          static_cast<int64_t>(wal - standby.reported)};
            if (states[i].Sample(sample, targets, now_us)) {
                changes[i]++;
                if (trace)
                    printf("%.1f s: standby %zu: %s, lag %.1f s, delay %.1f s\n",
                           static_cast<double>(now_us) / 1e6 - 1000, i, StandingName(states[i].standing),
                           static_cast<double>(states[i].lag_us) / 1e6,
                           static_cast<double>(states[i].delay_us) / 1e6);
            }
        }
        controller.Update(states.data(), listed, static_cast<uint32_t>(standbys.size()), targets, quorum,
                          {static_cast<uint64_t>(wal), buckets[1].charged.load()}, now_us);
        for (uint32_t lane = 0; lane < kFlowLanes; lane++)
            buckets[lane].SetRate(controller.lanes[lane].rate, now_us);
    }

    void Step()
    {
        constexpr double kStep = 1e-3;
        now_us += 1000;
        if (noise > 0 && std::uniform_real_distribution<>()(random) < 1e-3)
            stalled_until_us = now_us + static_cast<int64_t>(noise * 1e6);
        for (Client &client : clients)
            StepClient(&client, kStep);
        wal += others * kStep;
        if (dense > 0 || !dense_wal.empty()) {
            const double before = clock.empty() ? 0 : clock.back().first;
            if (dense_wal.empty())
                dense_wal.emplace_back(before, 0);
            wal += dense * kStep;
            dense_wal.emplace_back(wal, wal > before ? dense * kStep / (wal - before) : 0);
        }
        clock.emplace_back(wal, now_us);
        double oldest = wal;
        for (Standby &standby : standbys) {
            StepStandby(&standby, kStep);
            oldest = std::min(oldest, standby.reported);
        }
        while (clock.size() > 2 && clock.front().first < oldest && clock[1].first < oldest)
            clock.pop_front();
        if (now_us % 100000 == 0)
            Sample();
    }

    struct Result {
        double lag_min = 1e9, lag_max = 0, lag_mean = 0;
        double rate = 0; // of the writers
        double lane_rate[kFlowLanes] = {};
        uint64_t engagements = 0;
    };

    Result For(double seconds)
    {
        Result result;
        const double before[] = {written[0], written[1]};
        const uint64_t engaged = controller.lanes[1].engagements;
        const auto steps = static_cast<int64_t>(seconds * 1000);
        for (int64_t i = 0; i < steps; i++) {
            Step();
            const double lag = TrueLagS();
            result.lag_min = std::min(result.lag_min, lag);
            result.lag_max = std::max(result.lag_max, lag);
            result.lag_mean += lag / static_cast<double>(steps);
        }
        for (uint32_t lane = 0; lane < kFlowLanes; lane++) {
            result.lane_rate[lane] = (written[lane] - before[lane]) / seconds;
            result.rate += result.lane_rate[lane];
        }
        result.engagements = controller.lanes[1].engagements - engaged;
        return result;
    }
};

} // namespace weir::flow_simulator
