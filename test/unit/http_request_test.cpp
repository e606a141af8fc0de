#include "http/http_request.hpp"

#include <cstring>
#include <string>

#include <gtest/gtest.h>

namespace weir
{

namespace
{

const char *Parse(const std::string &target, HttpRequest *request)
{
    return ParseHttpTarget(target.data(), target.size(), request);
}

bool Refuses(const std::string &target)
{
    HttpRequest request;
    return Parse(target, &request) != nullptr;
}

TEST(HttpRequest, PathsAreWholeAndInLowerCase)
{
    HttpRequest request;
    EXPECT_EQ(Parse("/primary", &request), nullptr);
    EXPECT_EQ(request.endpoint, Endpoint::kPrimary);
    EXPECT_EQ(Parse("/health?", &request), nullptr);
    EXPECT_EQ(request.endpoint, Endpoint::kHealth);
    EXPECT_EQ(Parse("/metrics", &request), nullptr);
    EXPECT_EQ(request.endpoint, Endpoint::kMetrics);
    for (const char *target : {"", "/", "primary", "/primary/", "/Primary", "/primaryx", "/prim", "//primary",
                               "?", "/%70rimary", "http://host/primary", "*"}) {
        EXPECT_EQ(Parse(target, &request), nullptr) << target;
        EXPECT_EQ(request.endpoint, Endpoint::kNone) << target;
    }
}

TEST(HttpRequest, LagIsBytesOrTime)
{
    HttpRequest request;
    EXPECT_EQ(Parse("/replica?lag=16MB", &request), nullptr);
    EXPECT_TRUE(request.has_max_lag_bytes && !request.has_max_lag_us);
    EXPECT_EQ(request.max_lag_bytes, 16 << 20);
    EXPECT_EQ(Parse("/replica?lag=4096", &request), nullptr);
    EXPECT_EQ(request.max_lag_bytes, 4096);
    EXPECT_EQ(Parse("/replica?lag=1500ms", &request), nullptr);
    EXPECT_TRUE(request.has_max_lag_us && !request.has_max_lag_bytes);
    EXPECT_EQ(request.max_lag_us, 1500000);
    EXPECT_EQ(Parse("/replica?lag=2+min&lag=1%20kB", &request), nullptr);
    EXPECT_EQ(request.max_lag_us, 120000000);
    EXPECT_EQ(request.max_lag_bytes, 1024);
    EXPECT_EQ(Parse("/replica?lag=0", &request), nullptr);
    EXPECT_TRUE(request.has_max_lag_bytes);
    EXPECT_EQ(Parse("/replica?lag=9223372036854775807", &request), nullptr);
    EXPECT_EQ(request.max_lag_bytes, INT64_MAX);
}

TEST(HttpRequest, LsnIsAsThatOfPostgreSQL)
{
    HttpRequest request;
    EXPECT_EQ(Parse("/replica?min_lsn=16/B374D848", &request), nullptr);
    EXPECT_TRUE(request.has_min_lsn);
    EXPECT_EQ(request.min_lsn, (LsnToken{0x16B374D848u, 0}));
    EXPECT_EQ(Parse("/replica?min_lsn=ffffffff%2fFFFFFFFF", &request), nullptr);
    EXPECT_EQ(request.min_lsn, (LsnToken{UINT64_MAX, 0}));
    EXPECT_EQ(Parse("/replica?min_lsn=0/3000060@2", &request), nullptr);
    EXPECT_EQ(request.min_lsn, (LsnToken{0x3000060, 2}));
}

TEST(HttpRequest, WhatIsWrongIsRefused)
{
    for (const char *target : {"/replica?lag=",
                               "/replica?lag=x",
                               "/replica?lag=-1",
                               "/replica?lag=1.5s",
                               "/replica?lag=1mb",
                               "/replica?lag=1s&lag=2s",
                               "/replica?lag=9223372036854775808",
                               "/replica?lag=9223372036854775807kB",
                               "/replica?lag",
                               "/replica?&",
                               "/replica?=1",
                               "/replica?lag=1%",
                               "/replica?lag=1%2",
                               "/replica?lag=1%zz",
                               "/replica?lag=1%00s",
                               "/replica?lag=1%0a",
                               "/replica?lag=\xff",
                               "/replica?max_lag=1s",
                               "/replica?LAG=1s",
                               "/replica?min_lsn=",
                               "/replica?min_lsn=0",
                               "/replica?min_lsn=0/1@",
                               "/replica?min_lsn=%4/1",
                               "/replica?min_lsn=%-1/1",
                               "/replica?min_lsn=0/1%2",
                               "/replica?min_lsn=/",
                               "/replica?min_lsn=0/",
                               "/replica?min_lsn=0/1/2",
                               "/replica?min_lsn=123456789/0",
                               "/replica?min_lsn=0/123456789",
                               "/replica?min_lsn=0/G",
                               "/replica?min_lsn=0/1&min_lsn=0/1",
                               "/primary?lag=1s",
                               "/health?x=1",
                               "/metrics?x=1"})
        EXPECT_TRUE(Refuses(target)) << target;
    EXPECT_TRUE(Refuses("/replica?lag=" + std::string(200, '1')));
    EXPECT_TRUE(Refuses("/replica?" + std::string(200, 'x') + "=1"));
    EXPECT_TRUE(Refuses(std::string(kMaxTarget + 1, '/')));
    EXPECT_TRUE(Refuses(std::string("/replica?lag=1\0s", 15)));
}

} // namespace

} // namespace weir
