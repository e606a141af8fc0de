#include "http/health.hpp"

#include <cstring>
#include <string>

#include <gtest/gtest.h>

namespace weir
{

namespace
{

ServerStatus Standby()
{
    ServerStatus server = {};
    server.in_recovery = true;
    server.lag_known = server.bytes_known = true;
    server.state = "streaming";
    server.timeline = 3;
    server.lsn = 0x100000060;
    server.lag_bytes = 1000;
    server.lag_us = 1500000;
    server.minded = true;
    server.mode = "enforce";
    return server;
}

struct Answered {
    int status;
    std::string body;
};

Answered Ask(const std::string &target, const ServerStatus &server)
{
    HttpRequest request;
    EXPECT_EQ(ParseHttpTarget(target.data(), target.size(), &request), nullptr) << target;
    char body[2048];
    TextWriter writer(body, sizeof(body));
    const int status = AnswerHealth(request, server, &writer);
    EXPECT_FALSE(writer.Full());
    return {status, std::string(body, writer.Length())};
}

TEST(Health, OfAStandby)
{
    const Answered answer = Ask("/replica", Standby());
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body,
              "{\"role\": \"standby\", \"timeline\": 3, \"replayed\": \"1/60\", \"state\": \"streaming\", "
              "\"lag_bytes\": 1000, \"lag_seconds\": 1.5, \"mode\": \"enforce\", \"launcher\": true}\n");
    EXPECT_EQ(Ask("/primary", Standby()).status, 503);
    EXPECT_NE(Ask("/primary", Standby()).body.find("\"reason\": \"this is a standby\""), std::string::npos);
    EXPECT_EQ(Ask("/health", Standby()).status, 200);
}

TEST(Health, OfAPrimary)
{
    ServerStatus server = Standby();
    server.in_recovery = false;
    const Answered answer = Ask("/primary", server);
    EXPECT_EQ(answer.status, 200);
    EXPECT_EQ(answer.body,
              "{\"role\": \"primary\", \"timeline\": 3, \"lsn\": \"1/60\", \"mode\": \"enforce\", "
              "\"launcher\": true}\n");
    EXPECT_EQ(Ask("/replica", server).status, 503);
    EXPECT_EQ(Ask("/replica?lag=1h", server).status, 503);
    EXPECT_EQ(Ask("/health", server).status, 200);
}

TEST(Health, BoundsAreInclusive)
{
    EXPECT_EQ(Ask("/replica?lag=1000", Standby()).status, 200);
    EXPECT_EQ(Ask("/replica?lag=999", Standby()).status, 503);
    EXPECT_EQ(Ask("/replica?lag=1500ms", Standby()).status, 200);
    EXPECT_EQ(Ask("/replica?lag=1499ms", Standby()).status, 503);
    EXPECT_EQ(Ask("/replica?lag=1GB&lag=1s", Standby()).status, 503);
    EXPECT_EQ(Ask("/replica?min_lsn=1/60", Standby()).status, 200);
    EXPECT_EQ(Ask("/replica?min_lsn=1/61", Standby()).status, 503);
    EXPECT_EQ(Ask("/replica?min_lsn=1/60@3", Standby()).status, 200);
    EXPECT_EQ(Ask("/replica?min_lsn=1/60@2", Standby()).status, 503);
    EXPECT_EQ(Ask("/replica?min_lsn=1/60@4", Standby()).status, 503);
}

TEST(Health, InQuarantine)
{
    ServerStatus server = Standby();
    server.refuses = true;
    EXPECT_EQ(Ask("/replica", server).status, 503);
    EXPECT_NE(Ask("/replica", server).body.find("in quarantine"), std::string::npos);
    EXPECT_EQ(Ask("/health", server).status, 200);
}

TEST(Health, WhatIsNotKnownIsNotFresh)
{
    ServerStatus server = Standby();
    server.lag_known = false;
    server.lag_bytes = server.lag_us = 0;
    EXPECT_EQ(Ask("/replica", server).status, 200);
    EXPECT_EQ(Ask("/replica?lag=1h", server).status, 503);
    EXPECT_EQ(Ask("/replica?lag=1TB", server).status, 503);
    EXPECT_NE(Ask("/replica", server).body.find("\"lag_bytes\": null, \"lag_seconds\": null"),
              std::string::npos);
}

TEST(Health, BytesBehindASenderThatIsNotHeardAreNotKnown)
{
    ServerStatus server = Standby();
    server.state = "disconnected";
    server.bytes_known = false;
    EXPECT_EQ(Ask("/replica?lag=1GB", server).status, 503);
    EXPECT_EQ(Ask("/replica?lag=2s", server).status, 200);
    EXPECT_NE(Ask("/replica", server).body.find("\"lag_bytes\": null, \"lag_seconds\": 1.5"),
              std::string::npos);
}

} // namespace

} // namespace weir
