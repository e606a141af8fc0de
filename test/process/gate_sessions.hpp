#pragma once

// Processes that share a gate, as PostgreSQL's backends do: each forked session has a ticket, a latch and one
// lock, all in anonymous shared memory. The parent stands for the postmaster and for the launcher.

#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>

#include <csignal>
#include <cstdint>
#include <ctime>
#include <new>

#include "admission/gate.hpp"

namespace weir
{

constexpr uint32_t kSessions = 16;

inline int64_t NowMs()
{
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * int64_t{1000} + now.tv_nsec / 1000000;
}

struct SharedArea {
    GateShared gate;
    Ticket tickets[kSessions];
    std::atomic<int32_t> lock_owner; // a pid, so that the parent sees whom it may not stop; 0: free
    std::atomic<uint32_t> latches[kSessions];
    std::atomic<int32_t> held;
    std::atomic<uint32_t> exceeded;
    std::atomic<uint32_t> wrong; // a session found something that cannot be
    std::atomic<uint32_t> start;
    std::atomic<uint32_t> stop;
    std::atomic<uint32_t> reached; // the scripted session is where its test wants it
};

// One process's view of the area.
class Sessions
{
  public:
    Sessions()
        : area_(static_cast<SharedArea *>(
              mmap(nullptr, sizeof(SharedArea), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)))
    {
        Restart();
    }
    ~Sessions() { munmap(area_, sizeof(SharedArea)); }
    Sessions(const Sessions &) = delete;
    Sessions &operator=(const Sessions &) = delete;

    // The shared memory of a server that starts.
    void Restart()
    {
        new (area_) SharedArea();
        gate.Init(&area_->gate, area_->tickets, kSessions);
        gate.shared().enforcing.store(1);
    }

    SharedArea &area() { return *area_; }

    void Lock()
    {
        int32_t nobody = 0;
        while (!area_->lock_owner.compare_exchange_weak(nobody, getpid())) {
            nobody = 0;
            sched_yield();
        }
    }
    void Unlock() { area_->lock_owner.store(0); }

    void SetLatch(uint32_t id)
    {
        area_->latches[id].store(1);
        syscall(SYS_futex, &area_->latches[id], FUTEX_WAKE, 1, nullptr, nullptr, 0);
    }

    // Until the latch is set, a signal comes, or 100 ms are over.
    void WaitLatch(uint32_t id)
    {
        const timespec timeout = {0, 100000000};
        syscall(SYS_futex, &area_->latches[id], FUTEX_WAIT, 0, &timeout, nullptr, 0);
    }

    void WakeAll(const WakeList &wake)
    {
        for (uint32_t i = 0; i < wake.count; i++)
            SetLatch(wake.tickets[i]);
    }

    void Dispatch()
    {
        WakeList wake;
        do {
            wake.count = 0;
            Lock();
            gate.Dispatch(0, &wake);
            Unlock();
            WakeAll(wake);
        } while (wake.Full());
    }

    Admission Enqueue(uint32_t id, uint32_t class_id)
    {
        WakeList wake;
        Lock();
        const Admission admission = gate.Enqueue(id, class_id, 1, &wake);
        Unlock();
        WakeAll(wake);
        return admission;
    }

    bool Leave(uint32_t id)
    {
        Lock();
        const bool left = gate.Leave(id);
        Unlock();
        return left;
    }

    void Release(uint32_t id)
    {
        if (gate.Release(id))
            Dispatch();
    }

    // What a session's exit callback does, whatever state it finds.
    void DropTicket(uint32_t id)
    {
        if (gate.State(id) == TicketState::kWaiting)
            Leave(id);
        if (gate.State(id) != TicketState::kFree)
            Release(id);
    }

    uint64_t Admitted(uint32_t class_id) { return Gate::ClassAdmitted(gate.group(class_id)); }

    // Every counter and queue is empty.
    bool Empty()
    {
        for (uint32_t i = 0; i < kMaxClasses; i++) {
            const GateClass &c = gate.group(i);
            if (Gate::ClassActive(c) != 0 || c.waiting.load() != 0 || c.head != kNoTicket ||
                c.tail != kNoTicket)
                return false;
        }
        for (uint32_t id = 0; id < kSessions; id++) {
            if (gate.State(id) != TicketState::kFree)
                return false;
        }
        return area_->gate.load.load() == 0 && area_->lock_owner.load() == 0;
    }

    // Runs `body` in a child, which dies with its parent and never returns to the test.
    template <typename Body> pid_t Fork(Body body)
    {
        const pid_t pid = fork();
        if (pid != 0)
            return pid;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        body();
        _exit(0);
    }

    Gate gate;

  private:
    SharedArea *area_;
};

} // namespace weir
